"""Make a compact copy of a dataset: small clips that decode fast.

The folder of the copy holds

- the clips, at the same relative paths with the suffix ``.mp4``, or ``.flac`` for audio only (``x.avi`` and ``x.mp4``
  of one folder become ``x.avi.mp4`` and ``x.mp4.mp4``). A clip is written to a temporary file, read back, synced and
  renamed, and gets the modification time of its source. So every clip that exists is complete, and a source that
  changes is copied again.
- ``clips.csv``: file, label, split of every copied clip, as in the manifest; written when nothing is left to copy.
  It makes the folder a dataset: ``data=folder data.csv=COPY/clips.csv``. The copy is different data from the original,
  with its own manifest and hash.
- ``failures.csv``: file, label, split, reason of every clip that does not decode completely.
- ``compact.json``: settings, source, counts.

Call it again, from any number of processes, nodes or array tasks: it makes what is missing.

``python -m crisscross.data.prepare DATASET --compact COPY`` makes one.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crisscross.data.manifest import Manifest, check_inside
from crisscross.data.media.streams import DecodeError
from crisscross.data.parallel import run_resumable
from crisscross.data.prepare.compact_encode import CompactSettings, Streams, write_copy
from crisscross.data.source import FileStat, file_stat
from crisscross.utils.files import file_lock, fsync_directory, read_json, write_json, write_text

FAILED = ".failed"  # folder with one file per clip that cannot be copied


@dataclass(frozen=True)
class CopyStatus:
    """Progress of a compact copy.

    Attributes:
        target: folder of the copy.
        num_clips: usable clips of the manifest.
        num_copied: clips in the copy.
        num_pending: clips left for other shares or a later call.
        failures: (path, reason) of the clips that cannot be copied.
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
        """Whether every clip is copied or found damaged, so that ``clips.csv`` exists."""
        return self.num_pending == 0

    def __str__(self) -> str:
        line = f"{self.num_copied} of {self.num_clips} clips copied to {self.target} ({self.num_bytes / 1e9:.3f} GB)"
        if self.failures:
            top = ", ".join(f"{n} x {reason}" for reason, n in Counter(r for _, r in self.failures).most_common(3))
            line += f"; {len(self.failures)} damaged ({top})"
        return line if self.is_complete else f"{line}; {self.num_pending} left"


@dataclass(frozen=True)
class _Clip:
    """A clip and its copy: paths relative to their folders."""

    path: str
    copy: str
    label: str
    split: str
    stat: FileStat  # of the source
    streams: Streams


def run(
    manifest: Manifest,
    target: str | Path,
    settings: CompactSettings | None = None,
    *,
    jobs: int | None = None,
    share: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> CopyStatus:
    """Copy the clips of a manifest that are not copied yet.

    Args:
        manifest: the dataset.
        target: folder of the copy; made if missing.
        settings: size and quality; None = the defaults.
        jobs: processes; None = one per usable core.
        share: (k, n): copy the k-th of n parts, counted from 1. Without, concurrent calls share the work, too, and make
            a clip twice now and then.
        progress: show a progress bar.

    Returns:
        The progress over all shares.

    Raises:
        ValueError: if a setting is wrong, the folder holds something else, or no clip can be copied.
        OSError: if the folder cannot be written, or is full.
    """
    settings = settings or CompactSettings()
    target = Path(target).absolute()
    clips = _plan(manifest)
    try:
        run_resumable(
            clips,
            functools.partial(_copy_clip, manifest.root, target, settings),
            lambda clip: _state(target, clip) != "pending",
            folder=target,
            claim=functools.partial(_claim, target, settings, manifest),
            label="compact copies",
            jobs=jobs,
            share=share,
            progress=progress,
            on_crash=functools.partial(_record_failure, target, "crashes the decoder"),
        )
        with file_lock(target / ".compact.lock"):
            return _finish(target, settings, manifest, clips)
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"cannot write the compact copy to {target} ({reason}): free space or choose another folder"
        raise OSError(text) from error


def _plan(manifest: Manifest) -> list[_Clip]:
    """Return every usable clip with the name of its copy."""
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
    """Write the settings to the folder.

    Raises:
        ValueError: if the folder holds something else.
    """
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
        if found is None or found["source"]["fingerprint"] != manifest.data_hash:
            for name in ("clips.csv", "failures.csv"):  # they list other clips
                (target / name).unlink(missing_ok=True)
            _write_mark(target, settings, manifest, {"complete": False})


def _write_mark(target: Path, settings: CompactSettings, manifest: Manifest, counts: dict[str, Any]) -> None:
    source = {"root": str(manifest.root), "fingerprint": manifest.data_hash, "num_clips": len(manifest.clips)}
    write_json(target / "compact.json", {"settings": settings.as_json(), "source": source, **counts})


def _state(target: Path, clip: _Clip) -> str:
    """Return ``copied``, ``pending``, or why the current clip cannot be copied."""
    try:
        if (target / clip.copy).stat().st_mtime_ns == clip.stat[1]:
            return "copied"
    except FileNotFoundError:
        pass
    failed = read_json(_failure_path(target, clip))
    return failed["reason"] if failed and tuple(failed["stamp"]) == clip.stat else "pending"


def _failure_path(target: Path, clip: _Clip) -> Path:
    return target / FAILED / f"{hashlib.sha256(clip.path.encode()).hexdigest()[:24]}.json"


def _copy_clip(root: Path, target: Path, settings: CompactSettings, workplace: Path, clip: _Clip) -> None:
    """Copy a clip, or record why it cannot be copied."""
    if _state(target, clip) != "pending":  # another process was faster
        return
    partial = workplace / f"{uuid.uuid4().hex}{PurePosixPath(clip.copy).suffix}"
    try:
        if file_stat(root, clip.path) != clip.stat:
            _record_failure(target, "missing or changed since the manifest was built", clip)
            return
        write_copy(root / clip.path, partial, clip.streams, settings)
    except DecodeError as error:
        _record_failure(target, error.reason or str(error), clip)
        return
    else:
        _put(partial, target / clip.copy, mtime_ns=clip.stat[1])
        _failure_path(target, clip).unlink(missing_ok=True)
    finally:
        partial.unlink(missing_ok=True)


def _put(partial: Path, place: Path, *, mtime_ns: int) -> None:
    """Set the time of a finished file, and rename it."""
    with partial.open("rb+") as file:
        os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
        os.fsync(file.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(place)
    fsync_directory(place.parent)


def _record_failure(target: Path, reason: str, clip: _Clip) -> None:
    (target / FAILED).mkdir(exist_ok=True)
    write_json(_failure_path(target, clip), {"path": clip.path, "reason": reason, "stamp": list(clip.stat)})


def _finish(target: Path, settings: CompactSettings, manifest: Manifest, clips: list[_Clip]) -> CopyStatus:
    """Return the progress, and write the lists of a complete copy.

    The lists make the copy a dataset. They are written only if no clip is left to copy.
    """
    states = [_state(target, clip) for clip in clips]
    copied = [clip for clip, state in zip(clips, states, strict=True) if state == "copied"]
    failed = [(c, s) for c, s in zip(clips, states, strict=True) if s not in ("copied", "pending")]
    num_bytes = sum((target / clip.copy).stat().st_size for clip in copied)
    failures = tuple((clip.path, reason) for clip, reason in failed)
    status = CopyStatus(target, len(clips), len(copied), states.count("pending"), failures, num_bytes)
    if not status.is_complete:
        return status
    if not copied:
        raise ValueError(f"none of the {len(clips)} clips can be copied ({failures[0][0]}: {failures[0][1]})")
    rows = [(clip.path, clip.label, clip.split, reason) for clip, reason in failed]
    write_text(target / "failures.csv", _csv(("file", "label", "split", "reason"), rows))
    counts = {"num_copied": len(copied), "num_failed": len(failed), "num_bytes": num_bytes, "complete": True}
    _write_mark(target, settings, manifest, counts)
    write_text(target / "clips.csv", _csv(("file", "label", "split"), ((c.copy, c.label, c.split) for c in copied)))
    return status


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
