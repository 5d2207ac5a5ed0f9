"""Make a compact copy of a dataset: every good clip of a manifest, small and quick to decode, in another folder.

In the copy's folder:

- the clips, at the same relative paths with the suffix ``.mp4``, or ``.flac`` for sound alone (``x.avi`` and ``x.mp4``
  of one folder would meet: they become ``x.avi.mp4`` and ``x.mp4.mp4``). A clip is written beside, read back, synced
  and renamed, and carries the time of its source: so that a clip that is there is whole, and a source that changes
  is copied again.
- ``clips.csv``: file, label, split of every copied clip, as the manifest has them; written when nothing is left to
  copy. It makes the folder a dataset: ``data=folder data.csv=COPY/clips.csv``. It is other data than the original, with
  a manifest and a fingerprint of its own.
- ``failures.csv``: file, label, split, reason of every clip that turned out damaged when it was read whole.
- ``compact.json``: settings, source, counts.

Call it again, from as many processes, nodes or array tasks as you like: what is missing is made.

``python -m crisscross.data.prepare DATASET --compact COPY`` makes one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from crisscross.data.parallel import check_work, num_usable_cores, share_of, worker_pool, working_folder
from crisscross.data.prepare.compact_encode import CompactSettings
from crisscross.utils.files import file_lock, fsync_directory, read_json, write_json, write_text

if TYPE_CHECKING:
    from crisscross.data.manifest import Manifest
    from crisscross.data.prepare.compact_encode import Streams


CLIPS_A_TASK = 4
FAILED = ".failed"  # a folder with one file a clip that cannot be copied


@dataclass(frozen=True)
class Report:
    """How a copy stands.

    Attributes:
        target: the copy's folder.
        num_clips: good clips of the manifest.
        num_copied: those that are in the copy.
        num_pending: those that are left, for other shares or a later call.
        failures: (path, reason) of those that cannot be copied.
        num_bytes: size of the copied clips.
    """

    target: Path
    num_clips: int
    num_copied: int
    num_pending: int
    failures: tuple[tuple[str, str], ...]
    num_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether every clip is copied or known to be damaged, so that ``clips.csv`` is there."""
        return self.num_pending == 0

    def __str__(self) -> str:
        line = f"{self.num_copied} of {self.num_clips} clips copied to {self.target} ({self.num_bytes / 1e9:.3f} GB)"
        if self.failures:
            top = ", ".join(f"{n} x {reason}" for reason, n in Counter(r for _, r in self.failures).most_common(3))
            line += f"; {len(self.failures)} damaged ({top})"
        return line if self.is_complete else f"{line}; {self.num_pending} left"


@dataclass(frozen=True)
class _Clip:
    """A clip and its copy, both relative to their folders."""

    path: str
    copy: str
    label: str
    split: str
    stamp: tuple[int, int]  # size and time of the source
    streams: Streams


_Task = tuple[Path, Path, Path, _Clip, CompactSettings]  # root, target, workplace, clip, settings


def run(
    manifest: Manifest,
    target: str | Path,
    settings: CompactSettings | None = None,
    *,
    jobs: int | None = None,
    share: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Report:
    """Copy the clips of a manifest that are not copied yet.

    Args:
        manifest: the dataset.
        target: the copy's folder; made if need be.
        settings: what the copies are like; None means the defaults.
        jobs: processes; None means one a usable core.
        share: (k, n): copy the k-th of n parts, counted from 1; without, calls at the same time share the work as well,
            at the price of a clip made twice now and then.
        progress: show a progress bar.

    Returns:
        How the copy stands, over all shares.

    Raises:
        ValueError: a setting is wrong, the folder holds a copy of another kind, or no clip can be copied.
        OSError: the folder cannot be written, or is full; one line.
    """
    check_work(jobs, share)
    settings = settings or CompactSettings()
    target = Path(target).absolute()
    clips = _plan(manifest)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _claim(target, settings, manifest)
        todo = [clip for clip in share_of(clips, share) if _state(target, clip) == "pending"]
        if todo:
            with working_folder(target) as workplace:
                tasks = [(manifest.root, target, workplace, clip, settings) for clip in _from_anywhere(todo)]
                _drain(_results(tasks, jobs or num_usable_cores()), len(tasks), progress=progress)
        with file_lock(target / ".compact.lock"):
            return _finish(target, settings, manifest, clips)
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"cannot write the compact copy to {target} ({reason}): free space or choose another folder"
        raise OSError(text) from error


def _plan(manifest: Manifest) -> list[_Clip]:
    """Return every good clip with the name of its copy."""
    from crisscross.data.manifest import check_inside
    from crisscross.data.prepare.compact_encode import Streams

    rows = list(manifest.clips.itertuples())
    check_inside((row.path for row in rows), what="copied")
    streams = [Streams(r.video_start_s, r.video_end_s, r.audio_start_s, r.audio_end_s) for r in rows]
    suffixes = [".mp4" if found.has_video else ".flac" for found in streams]
    names = [str(PurePosixPath(row.path).with_suffix(suffix)) for row, suffix in zip(rows, suffixes, strict=True)]
    shared = {name for name, times in Counter(names).items() if times > 1}
    names = [
        row.path + suffix if name in shared else name for row, suffix, name in zip(rows, suffixes, names, strict=True)
    ]
    return [
        _Clip(row.path, name, row.label, row.split, (int(row.size_bytes), int(row.mtime_ns)), found)
        for row, name, found in zip(rows, names, streams, strict=True)
    ]


def _claim(target: Path, settings: CompactSettings, manifest: Manifest) -> None:
    """Mark the folder as a copy with these settings, or find that it is something else."""
    mark = target / "compact.json"
    remedy = "choose an empty folder, or delete this one if nothing needs it"
    if target == manifest.root or target in manifest.root.parents:
        raise ValueError(
            f"the compact copy cannot be made in {target}, which holds the original clips: choose an empty folder"
        )
    with file_lock(target / ".compact.lock"):
        found = read_json(mark)
        if found is None:
            strange = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith("."))
            if strange:
                raise ValueError(f"{target} has {strange[0]!r} but no compact.json: not a compact copy; {remedy}")
        elif found.get("settings") != settings.as_json():
            was = found.get("settings") or {}
            other = [f"{k}={was.get(k)}, now {v}" for k, v in settings.as_json().items() if was.get(k) != v]
            raise ValueError(f"{target} holds a compact copy made with {'; '.join(other)}: {remedy}")
        if found is None or found["source"]["fingerprint"] != manifest.fingerprint:
            for name in ("clips.csv", "failures.csv"):  # they tell of other clips
                (target / name).unlink(missing_ok=True)
            _write_mark(target, settings, manifest, {"complete": False})


def _write_mark(target: Path, settings: CompactSettings, manifest: Manifest, counts: dict[str, Any]) -> None:
    source = {"root": str(manifest.root), "fingerprint": manifest.fingerprint, "num_clips": len(manifest.clips)}
    write_json(target / "compact.json", {"settings": settings.as_json(), "source": source, **counts})


def _state(target: Path, clip: _Clip) -> str:
    """Return ``copied``, ``pending``, or why the clip, as it is now, cannot be copied."""
    try:
        if (target / clip.copy).stat().st_mtime_ns == clip.stamp[1]:
            return "copied"
    except FileNotFoundError:
        pass
    failed = read_json(_failure_path(target, clip))
    return failed["reason"] if failed and tuple(failed["stamp"]) == clip.stamp else "pending"


def _failure_path(target: Path, clip: _Clip) -> Path:
    return target / FAILED / f"{hashlib.sha256(clip.path.encode()).hexdigest()[:24]}.json"


def _from_anywhere(todo: list[_Clip]) -> list[_Clip]:
    # Each call starts elsewhere, so that two at once meet late instead of making every clip twice.
    first = int.from_bytes(os.urandom(4), "little") % len(todo)
    return todo[first:] + todo[:first]


def _results(tasks: list[_Task], jobs: int) -> Iterator[_Task]:
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            _copy_task(task)
            yield task
        return
    batches = [tasks[i : i + CLIPS_A_TASK] for i in range(0, len(tasks), CLIPS_A_TASK)]
    pool = worker_pool(min(jobs, len(batches)))
    try:
        futures = {pool.submit(_copy_tasks, batch): batch for batch in batches}
        for future in as_completed(futures):
            future.result()
            yield from futures[future]
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        for task in tasks:  # one of these kills whoever opens it: each gets a process of its own
            if _state(task[1], task[3]) == "pending":
                _copy_apart(task)
                yield task
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _copy_apart(task: _Task) -> None:
    with worker_pool(1) as pool:
        try:
            pool.submit(_copy_task, task).result()
        except BrokenProcessPool:
            _note_failure(task[1], task[3], "crashes the decoder")


def _drain(results: Iterable[_Task], total: int, *, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        shown = bar.add_task("compact copies", total=total)
        for _ in results:
            bar.advance(shown)


def _copy_tasks(tasks: list[_Task]) -> None:
    for task in tasks:
        _copy_task(task)


def _copy_task(task: _Task) -> None:
    """Copy a clip, or note why it cannot be."""
    root, target, workplace, clip, settings = task
    if _state(target, clip) != "pending":  # another process was faster
        return
    from crisscross.data.media.streams import DecodeError
    from crisscross.data.prepare.compact_encode import write_copy
    from crisscross.data.source import file_stat

    partial = workplace / f"{uuid.uuid4().hex}{PurePosixPath(clip.copy).suffix}"
    try:
        if file_stat(root, clip.path) != clip.stamp:
            _note_failure(target, clip, "missing or changed since the manifest was built")
            return
        write_copy(root / clip.path, partial, clip.streams, settings)
    except DecodeError as error:
        _note_failure(target, clip, error.reason or str(error))
        return
    else:
        _put(partial, target / clip.copy, mtime_ns=clip.stamp[1])
        _failure_path(target, clip).unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def _put(partial: Path, place: Path, *, mtime_ns: int) -> None:
    """Give a finished file its time and its name."""
    with partial.open("rb+") as file:
        os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
        os.fsync(file.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(place)
    fsync_directory(place.parent)


def _note_failure(target: Path, clip: _Clip, reason: str) -> None:
    (target / FAILED).mkdir(exist_ok=True)
    write_json(_failure_path(target, clip), {"path": clip.path, "reason": reason, "stamp": list(clip.stamp)})


def _finish(target: Path, settings: CompactSettings, manifest: Manifest, clips: list[_Clip]) -> Report:
    """See how the copy stands; when nothing is left, make it a dataset."""
    states = [_state(target, clip) for clip in clips]
    copied = [clip for clip, state in zip(clips, states, strict=True) if state == "copied"]
    failed = [(c, s) for c, s in zip(clips, states, strict=True) if s not in ("copied", "pending")]
    num_bytes = sum((target / clip.copy).stat().st_size for clip in copied)
    failures = tuple((clip.path, reason) for clip, reason in failed)
    report = Report(target, len(clips), len(copied), states.count("pending"), failures, num_bytes)
    if not report.is_complete:
        return report
    if not copied:
        raise ValueError(f"none of the {len(clips)} clips can be copied ({failures[0][0]}: {failures[0][1]})")
    rows = [(clip.path, clip.label, clip.split, reason) for clip, reason in failed]
    write_text(target / "failures.csv", _csv(("file", "label", "split", "reason"), rows))
    counts = {"num_copied": len(copied), "num_failed": len(failed), "num_bytes": num_bytes, "complete": True}
    _write_mark(target, settings, manifest, counts)
    write_text(target / "clips.csv", _csv(("file", "label", "split"), ((c.copy, c.label, c.split) for c in copied)))
    return report


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
