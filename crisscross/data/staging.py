"""Stage clips to node-local disk before the job starts.

``data.stage`` is

- ``off``: clips are read where they are.
- ``auto``: stage to ``$SLURM_TMPDIR``, or in a Slurm job to ``$TMPDIR`` (the launcher sets it to
  ``cluster.local_disk``). Without either, or without enough space, clips are read where they are, with a warning.
- a folder: stage to it; too little space is an error that names the space needed.

One process per node copies the clips while the others wait for its lock. Each node of a job has its own copy; jobs that
share a disk share the copy. Clips that are in tar files (``ROOT/shards/*.tar``, or ``data.shards``) are unpacked from
there, the others are copied file by file. A clip is written to a temporary file, then renamed, with the size and the
time of the manifest: so every clip that exists is complete and current, and a job that starts again copies only what is
missing. Staged clips stay for the next job, unless Slurm deletes ``$SLURM_TMPDIR``.
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
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.distributed import DistributedContext
from crisscross.utils.files import DISK_FULL, file_lock
from crisscross.utils.signals import SHUTDOWN, Preempted, raise_if_preempted

logger = logging.getLogger(__name__)
COPY_THREADS = 8  # ours: a parallel file system has a long latency and serves many requests at once
SHARDS = "shards"  # folder of tar files in a dataset's root
SPARE_BYTES = 2**20  # ours: left free for the file system itself
SAME_TIME_NS = 2 * 10**9  # FAT stores times to two seconds, tar to one
REPORT_EVERY_S = 1.0
LOCK_POLL_S = 0.5  # ours: how often a waiting process checks for a signal
ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class _Clip:
    path: str
    num_bytes: int
    mtime_ns: int

    def is_at(self, folder: Path) -> bool:
        """Whether the folder has the clip, complete and current."""
        try:
            found = (folder / self.path).stat()
        except FileNotFoundError:
            return False
        return self.matches(found.st_size, found.st_mtime_ns)

    def matches(self, num_bytes: int, mtime_ns: int) -> bool:
        """Whether size and time equal those of the manifest."""
        return num_bytes == self.num_bytes and abs(mtime_ns - self.mtime_ns) < SAME_TIME_NS


def stage_in(
    manifest: Manifest,
    settings: DataSettings,
    *,
    splits: Sequence[str] | None = None,
    report: ProgressCallback | None = None,
) -> Manifest:
    """Copy the clips of a manifest to node-local disk, as ``data.stage`` sets.

    Args:
        manifest: the clips at their original place.
        settings: of the data; ``name``, ``stage`` and ``shards`` are used.
        splits: splits to stage; None = all.
        report: called at intervals with a line on the progress.

    Returns:
        The manifest with the staged root; the same object if nothing is staged.

    Raises:
        Preempted: if a signal stops the job.
        ValueError: if the folder cannot be used, or a clip differs from the manifest.
        OSError: if there is not enough space, or the disk cannot be written.
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
        folder = own_folder(disk) / f"{name}-{manifest.data_hash[:16]}"
        folder.mkdir(exist_ok=True)
        with _interruptible_lock(folder.with_suffix(".lock"), report):
            num_copied, num_bytes = _copy_missing(manifest, settings, folder, _needed(manifest, splits), report)
    except (OSError, ValueError) as error:
        if settings.stage != "auto":
            raise
        logger.warning("data.stage=auto: clips are read from %s: %s", manifest.root, error)
        return manifest
    seconds = time.monotonic() - started
    text = "clips are read from %s, where %d (%.1f MB) were copied from %s in %.1f s"
    logger.info(text, folder, num_copied, num_bytes / 1e6, manifest.root, seconds)
    return replace(manifest, root=folder)


def local_disk(stage: str, *, key: str = "data.stage") -> Path | None:
    """Return a folder of the node's own disk, as a setting names it.

    Args:
        stage: ``auto`` or a folder, which may begin with a variable.
        key: the setting, for messages.

    Returns:
        The folder; None if there is none.

    Raises:
        ValueError: if it contains a variable that is not set, or is not an absolute path.
    """
    if stage == "auto":
        found = os.environ.get("SLURM_TMPDIR") or (os.environ.get("TMPDIR") if "SLURM_JOB_ID" in os.environ else None)
        return Path(found) if found and Path(found).is_dir() else None
    expanded = os.path.expandvars(Path(stage).expanduser())
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset or not Path(expanded).is_absolute():
        what = f"${unset[1]} is not set in this job" if unset else f"it is {expanded}, not an absolute folder"
        raise ValueError(f"{key}={stage}: {what}: give a folder on the node's own disk, or off")
    return Path(expanded)


def own_folder(disk: Path, *, name: str = "crisscross-clips", key: str = "data.stage") -> Path:
    """Return a private folder: other users must not replace clips.

    Args:
        disk: a folder on the node's own disk.
        name: first part of the private folder's name.
        key: the setting, for messages.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it belongs to another user.
    """
    folder = disk / f"{name}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = f"{key}: cannot write {disk} ({error.strerror}): give a folder on the node's own disk, or off"
        raise OSError(text) from error
    if folder.stat().st_uid != os.getuid():
        raise ValueError(f"{key}: {folder} belongs to somebody else: give another folder")
    return folder


@contextmanager
def _interruptible_lock(path: Path, report: ProgressCallback | None) -> Iterator[None]:
    """Hold a lock; while waiting for it, react to signals."""
    lock = file_lock(path, timeout_s=LOCK_POLL_S)
    while True:
        raise_if_preempted()
        try:
            lock.acquire()
            break
        except TimeoutError:
            if report is not None:
                report("waiting for another process to stage clips to this node")
    try:
        yield
    finally:
        lock.release()


def _needed(manifest: Manifest, splits: Sequence[str] | None) -> list[_Clip]:
    frames = [manifest.clips] if splits is None else [manifest.split(name) for name in splits]
    clips = pd.concat(frames).drop_duplicates("path")
    columns = (clips["path"], clips["size_bytes"], clips["mtime_ns"])
    return [_Clip(path, int(size), int(mtime_ns)) for path, size, mtime_ns in zip(*columns, strict=True)]


def _copy_missing(
    manifest: Manifest, settings: DataSettings, folder: Path, clips: list[_Clip], report: ProgressCallback | None
) -> tuple[int, int]:
    """Stage the missing clips; return their number and bytes."""
    missing = [clip for clip in clips if not clip.is_at(folder)]
    num_bytes = sum(clip.num_bytes for clip in missing)
    if not missing:
        return 0, 0
    incoming = folder / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # of a killed process: the lock excludes others
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
    shards = Path(settings.shards) if settings.shards else manifest.root / SHARDS
    try:
        left = _from_tars(folder, incoming, shards, missing, progress)
        _from_root(manifest.root, incoming, folder, left, progress)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        remedy = "free space, stage a compact copy, or set data.stage=off"
        raise OSError(f"data.stage: {folder} is full ({error.strerror}): {remedy}") from error
    shutil.rmtree(incoming)  # tar files leave folders in it
    return len(missing), num_bytes


def _from_tars(folder: Path, incoming: Path, shards: Path, clips: list[_Clip], progress: _Progress) -> list[_Clip]:
    """Unpack the clips that tar files hold.

    Returns:
        The other clips: those in no tar file, or with a different size or time there.
    """
    left = {clip.path: clip for clip in clips}
    for path in sorted(shards.glob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    clip = left.get(os.path.normpath(member.name))  # GNU tar writes ./a.mp4 for a.mp4
                    if clip is None or not member.isfile():
                        continue
                    if not clip.matches(member.size, int(member.mtime * 10**9)):
                        continue
                    tar.extract(member, incoming, filter="data")
                    _put(incoming / member.name, folder, clip)
                    del left[clip.path]
                    progress.add(clip)
        except (tarfile.TarError, FileNotFoundError) as error:
            logger.warning("%s cannot be read to its end (%s): the rest is copied file by file", path, error)
    return list(left.values())


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
    """Set the time of a complete clip and rename it.

    There is no fsync: a power loss ends the job, too.
    """
    size = partial.stat().st_size
    if size != clip.num_bytes:
        raise ValueError(
            f"{source or clip.path} has {size} bytes, expected {clip.num_bytes}: it has changed since the manifest was"
            " built: launch the study again"
        )
    os.utime(partial, ns=(clip.mtime_ns, clip.mtime_ns))
    partial.replace(folder / clip.path)


class _Progress:
    """Counts staged clips, reports them at intervals, and reacts to signals."""

    def __init__(self, num_clips: int, num_bytes: int, report: ProgressCallback | None) -> None:
        self._total, self._total_bytes, self._report = num_clips, num_bytes, report
        self._done = self._bytes = 0
        self._reported_s = float("-inf")

    def add(self, clip: _Clip) -> None:
        """Count a staged clip.

        Raises:
            Preempted: if a signal stops the job; the clip stays.
        """
        self._done += 1
        self._bytes += clip.num_bytes
        if self._report is not None and time.monotonic() - self._reported_s > REPORT_EVERY_S:
            self._reported_s = time.monotonic()
            megabytes = f"{self._bytes / 1e6:.0f} of {self._total_bytes / 1e6:.0f} MB"
            self._report(f"staging clips to the node: {self._done} of {self._total}, {megabytes}")
        if self._done < self._total:
            raise_if_preempted()


def stage_manifest(
    run: RunDirectory, data: DataSettings, world: DistributedContext, *, splits: Sequence[str]
) -> Manifest:
    """Read a manifest and stage its clips on each node.

    All ranks succeed or fail together.

    Args:
        run: the run directory, whose progress names the current step.
        data: settings of the data.
        world: this rank among the ranks of the job.
        splits: splits to stage.

    Raises:
        Preempted: if a signal stops one of the ranks.
        FileNotFoundError: if the manifest or its clips are missing.
        ValueError: if the clips have changed.
        OSError: if the clips cannot be staged.
    """
    error: Exception | None = None
    try:
        manifest = open_manifest(data)
        manifest = stage_in(manifest, data, splits=splits, report=run.record_phase if world.is_main_process else None)
    except (OSError, ValueError, Preempted) as problem:
        error = problem
    error = world.first_error(error)
    if isinstance(error, Preempted):
        SHUTDOWN.propagate(str(error))  # all ranks stop for the same signal
    if error is not None:
        raise error
    return manifest
