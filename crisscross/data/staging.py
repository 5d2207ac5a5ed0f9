"""Bring the clips of a job to its node's own disk, before it begins.

``data.stage`` says whether and where to:

- ``off``: clips are read where they are.
- ``auto``: to ``$SLURM_TMPDIR``, or in a Slurm job to ``$TMPDIR`` (the launcher sets it to ``cluster.local_disk``).
  Where there is neither, or no room, clips are read where they are, and the log says so.
- a folder: to there; a job that finds no room fails with a line that says how much is needed.

One process a node brings the clips, the others wait for its lock; each node of a job has its own copy, and jobs that
share a disk share it. Shards (``shards.py``) are used where the root has them, and what they lack is copied file by
file. A clip is written beside and renamed, with the size and the time that the manifest knows: so a clip that is there
is whole and current, and a job that starts again brings only what is missing. What was brought is left for the next
job; ``$SLURM_TMPDIR`` goes with the job.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from crisscross.config.data import DataSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.manifest import Manifest, check_inside
from crisscross.data.shards import DEFAULT_FOLDER, read_index
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.distributed import DistributedContext
from crisscross.utils.files import DISK_FULL, file_lock
from crisscross.utils.signals import INTERRUPTION, Preempted, raise_if_preempted

logger = logging.getLogger(__name__)
COPY_THREADS = 8  # a cluster's file system answers late and to many at once (chosen by us)
SPARE_BYTES = 2**20  # left free for the file system's own needs
SAME_TIME_NS = 2 * 10**9  # some disks keep times to two seconds
REPORT_EVERY_S = 1.0
LOCK_LOOK_S = 0.5  # how often a process that waits looks whether it was told to leave
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Clip:
    path: str
    num_bytes: int
    mtime_ns: int

    def is_at(self, folder: Path) -> bool:
        """Whether the clip is there, whole and current."""
        try:
            found = (folder / self.path).stat()
        except FileNotFoundError:
            return False
        return found.st_size == self.num_bytes and abs(found.st_mtime_ns - self.mtime_ns) < SAME_TIME_NS


def staged(
    manifest: Manifest, settings: DataSettings, *, splits: Sequence[str] | None = None, report: Report | None = None
) -> Manifest:
    """Bring a manifest's clips to the node's own disk, if ``data.stage`` says so.

    Args:
        manifest: the clips, where they are.
        settings: ``stage`` and ``shards`` of them are used.
        splits: whose clips are needed; None means all.
        report: called now and then with what is being done.

    Returns:
        The same manifest with another root; the very same where nothing is brought.

    Raises:
        Interrupted: a signal asked the job to leave.
        ValueError: the folder cannot be used, or a clip is not what the manifest says.
        OSError: there is not enough room, or the disk refuses.
    """
    if settings.stage is None or settings.stage == "off":
        return manifest
    disk = local_disk(settings.stage)
    if disk is None:
        logger.warning("data.stage=auto: no $SLURM_TMPDIR here, clips are read from %s", manifest.root)
        return manifest
    started = time.monotonic()
    try:
        check_inside(manifest.clips["path"], what="staged")
        name = re.sub(r"[^\w.-]", "_", settings.name)
        folder = _own_folder(disk) / f"{name}-{manifest.fingerprint[:16]}"
        folder.mkdir(exist_ok=True)
        with _patient_lock(folder.with_suffix(".lock"), report):
            num_brought, num_bytes = _bring(manifest, settings, folder, _needed(manifest, splits), report)
    except (OSError, ValueError) as error:
        if settings.stage != "auto":
            raise
        logger.warning("data.stage=auto: clips are read from %s: %s", manifest.root, error)
        return manifest
    seconds = time.monotonic() - started
    text = "clips are read from %s, where %d (%.1f MB) were brought from %s in %.1f s"
    logger.info(text, folder, num_brought, num_bytes / 1e6, manifest.root, seconds)
    return replace(manifest, root=folder)


def local_disk(stage: str) -> Path | None:
    """Return the folder that ``data.stage`` means in this job; None where there is none.

    Raises:
        ValueError: it names a variable that is not set.
    """
    if stage == "auto":
        found = os.environ.get("SLURM_TMPDIR") or (os.environ.get("TMPDIR") if "SLURM_JOB_ID" in os.environ else None)
        return Path(found) if found and Path(found).is_dir() else None
    expanded = os.path.expandvars(Path(stage).expanduser())
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset or not Path(expanded).is_absolute():
        what = f"${unset[1]} is not set in this job" if unset else f"it is {expanded}, not an absolute folder"
        raise ValueError(f"data.stage={stage}: {what}: give a folder on the node's own disk, or off")
    return Path(expanded)


def _own_folder(disk: Path) -> Path:
    """Return a folder of this user's alone: others could put files of their own in the place of clips."""
    folder = disk / f"crisscross-clips-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = f"data.stage: cannot write {disk} ({error.strerror}): give a folder on the node's own disk, or off"
        raise OSError(text) from error
    if folder.stat().st_uid != os.getuid():
        raise ValueError(f"data.stage: {folder} belongs to somebody else: give another folder")
    return folder


@contextmanager
def _patient_lock(path: Path, report: Report | None) -> Iterator[None]:
    """Hold a lock; while another process has it, go on looking at the flag that signals set."""
    lock = file_lock(path, timeout_s=LOCK_LOOK_S)
    while True:
        raise_if_preempted()
        try:
            lock.acquire()
            break
        except TimeoutError:
            if report is not None:
                report("waiting for clips that another process brings to this node")
    try:
        yield
    finally:
        lock.release()


def _needed(manifest: Manifest, splits: Sequence[str] | None) -> list[_Clip]:
    frames = [manifest.clips] if splits is None else [manifest.split(name) for name in splits]
    clips = pd.concat(frames).drop_duplicates("path")
    columns = (clips["path"], clips["size_bytes"], clips["mtime_ns"])
    return [_Clip(path, int(size), int(mtime_ns)) for path, size, mtime_ns in zip(*columns, strict=True)]


def _bring(
    manifest: Manifest, settings: DataSettings, folder: Path, clips: list[_Clip], report: Report | None
) -> tuple[int, int]:
    """Bring what is missing; return how many clips and bytes that was."""
    missing = [clip for clip in clips if not clip.is_at(folder)]
    num_bytes = sum(clip.num_bytes for clip in missing)
    if not missing:
        return 0, 0
    incoming = folder / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # what a killed process left: whoever holds the lock is alone here
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise OSError(
            f"data.stage: {len(missing)} clips need {num_bytes / 1e6:.1f} MB in {folder}, which has {free / 1e6:.1f} MB"
            " free: free space, stage a compact copy, or set data.stage=off",
        )
    incoming.mkdir()
    for name in {os.path.dirname(clip.path) for clip in missing}:  # noqa: PTH120 (plain text, many of them)
        (folder / name).mkdir(parents=True, exist_ok=True)
    progress = _Progress(len(missing), num_bytes, report)
    shards = Path(settings.shards) if settings.shards else manifest.root / DEFAULT_FOLDER
    try:
        left = _from_shards(shards, incoming, folder, missing, progress)
        _from_root(manifest.root, incoming, folder, left, progress)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        remedy = "free space, stage a compact copy, or set data.stage=off"
        raise OSError(f"data.stage: {folder} is full ({error.strerror}): {remedy}") from error
    incoming.rmdir()
    return len(missing), num_bytes


def _from_shards(shards: Path, incoming: Path, folder: Path, clips: list[_Clip], progress: _Progress) -> list[_Clip]:
    """Bring the clips that shards hold, as large reads; return those that are left."""
    index = read_index(shards)
    if index is None:
        return clips
    wanted = {clip.path: clip for clip in clips}
    for shard in index.shards:
        here = [wanted[path] for path, size in shard["files"] if path in wanted and size == wanted[path].num_bytes]
        if not here:
            continue
        try:
            packed_at_ns = _check_shard(index.target / shard["name"], shard["num_bytes"])
            current = {clip.path: clip for clip in here if clip.mtime_ns <= packed_at_ns}
            with tarfile.open(index.target / shard["name"], "r:") as tar:
                for member in tar:
                    clip = current.get(member.name)
                    if clip is None or member.size != clip.num_bytes:
                        continue
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is None:
                        continue
                    with content, (incoming / "clip").open("wb") as partial:
                        shutil.copyfileobj(content, partial, 2**20)
                    _put(incoming / "clip", folder, clip)
                    del wanted[clip.path]
                    progress.add(clip)
        except (tarfile.TarError, FileNotFoundError, ValueError) as error:
            logger.warning("%s is passed over (%s): its clips are copied one by one", shard["name"], error)
    return list(wanted.values())


def _check_shard(path: Path, num_bytes: int) -> int:
    """Return when a shard was packed; clips that are younger are not in it."""
    found = path.stat()
    if found.st_size != num_bytes:
        raise ValueError(f"{found.st_size} bytes, expected {num_bytes}")
    return found.st_mtime_ns


def _from_root(root: Path, incoming: Path, folder: Path, clips: list[_Clip], progress: _Progress) -> None:
    def copy(number: int, clip: _Clip) -> _Clip:
        raise_if_preempted()
        partial = incoming / str(number)
        shutil.copyfile(root / clip.path, partial)
        _put(partial, folder, clip, source=root / clip.path)
        return clip

    with ThreadPoolExecutor(COPY_THREADS) as pool:
        try:
            for future in as_completed([pool.submit(copy, number, clip) for number, clip in enumerate(clips)]):
                progress.add(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _put(partial: Path, folder: Path, clip: _Clip, source: Path | None = None) -> None:
    """Give a clip its time and its name, once it is whole. No fsync: a disk that loses power loses the job, too."""
    size = partial.stat().st_size
    if size != clip.num_bytes:
        raise ValueError(
            f"{source or clip.path} has {size} bytes, expected {clip.num_bytes}: it has changed since the manifest was"
            " built: launch the study again"
        )
    os.utime(partial, ns=(clip.mtime_ns, clip.mtime_ns))
    partial.replace(folder / clip.path)


class _Progress:
    """Counts what is brought, tells of it now and then, and looks at the flag that signals set."""

    def __init__(self, num_clips: int, num_bytes: int, report: Report | None) -> None:
        self._total, self._total_bytes, self._report = num_clips, num_bytes, report
        self._done = self._bytes = 0
        self._told = float("-inf")

    def add(self, clip: _Clip) -> None:
        """Note that a clip is there.

        Raises:
            Interrupted: the job shall leave; the clip stays.
        """
        self._done += 1
        self._bytes += clip.num_bytes
        if self._report is not None and time.monotonic() - self._told > REPORT_EVERY_S:
            self._told = time.monotonic()
            megabytes = f"{self._bytes / 1e6:.0f} of {self._total_bytes / 1e6:.0f} MB"
            self._report(f"bringing clips to the node: {self._done} of {self._total}, {megabytes}")
        if self._done < self._total:
            raise_if_preempted()


def open_clips(run: RunDirectory, data: DataSettings, world: DistributedContext, *, splits: Sequence[str]) -> Manifest:
    """Read the manifest and bring its clips to each node, where ``data.stage`` says so; all processes go on, or none.

    Args:
        run: told what is being done.
        data: which clips.
        world: this process among its fellows.
        splits: whose clips are needed.

    Raises:
        Interrupted: a signal asked one of the processes to leave.
        FileNotFoundError, ValueError, OSError: the clips are gone, have changed, or cannot be brought.
    """
    error: Exception | None = None
    try:
        manifest = open_manifest(data)
        manifest = staged(manifest, data, splits=splits, report=run.say_phase if world.is_main_process else None)
    except (OSError, ValueError, Preempted) as problem:
        error = problem
    error = world.first_error(error)
    if isinstance(error, Preempted):
        INTERRUPTION.note(str(error))  # whichever rank was told: all leave for the same reason
    if error is not None:
        raise error
    return manifest
