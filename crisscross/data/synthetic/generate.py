"""The demo's dataset: generated mp4 files (H.264 + AAC), told apart only by how they move and sound.

``generate`` fills ``<root>/{train,test}/<class>/<class>_<split>_<index>.mp4``. Call it again, from as many
processes as you like, and it makes what is missing: a clip is written beside, synced and renamed, so that a file
that is there is whole. ``toy.json`` says with which settings the folder was made.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from crisscross.data.parallel import num_usable_cores, worker_pool, working_folder
from crisscross.data.synthetic.spec import SPLITS, TOY_VERSION, ToyClip, ToySettings, list_clips


def generate(
    root: str | os.PathLike[str], settings: ToySettings, *, jobs: int | None = None, progress: bool = True
) -> None:
    """Make the clips that are missing under ``root``.

    Safe to interrupt, to call again and to call from several processes at once, which then share the work.

    Args:
        root: the dataset's folder; made if need be.
        settings: what to make.
        jobs: how many processes; ``None`` takes one a usable core.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds something else, or ``jobs`` is below 1.
        OSError: the folder cannot be written; one line that says why.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"got jobs={jobs}; at least 1 process is needed to make the toy clips")
    root = Path(root).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _claim(root, settings)
        missing = [clip for clip in list_clips(settings) if not (root / clip.path).exists()]
        if missing:
            with working_folder(root) as workplace:
                _make_all(root, workplace, missing, settings, jobs=jobs or num_usable_cores(), progress=progress)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot write the toy clips to {root}: {reason}; free space, or choose a writable folder"
        raise OSError(error.errno, message) from error


def _claim(root: Path, settings: ToySettings) -> None:
    """Mark the folder as made with these settings, or find that it is somebody else's."""
    mark = root / "toy.json"
    remedy = "choose an empty folder, or delete this one if nothing needs it"
    if not mark.exists():
        taken = [split for split in SPLITS if (root / split).exists()]
        if taken and not mark.exists():
            raise ValueError(f"{root} has a folder {taken[0]!r} but no toy.json: not toy clips; {remedy}")
        content = {
            "fingerprint": settings.fingerprint(),
            "toy_version": TOY_VERSION,
            "settings": asdict(settings),
        }
        _write_whole(mark, json.dumps(content, indent=2).encode(), beside=root)
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{mark} is not readable as the mark of toy clips; {remedy}") from None
    if found != settings.fingerprint():
        raise ValueError(
            f"{root} holds toy clips of other settings: fingerprint {found}, wanted {settings.fingerprint()}; {remedy}"
        )


def _make_all(
    root: Path, workplace: Path, missing: list[ToyClip], settings: ToySettings, *, jobs: int, progress: bool
) -> None:
    # Each call starts elsewhere, so that two at once meet late instead of making every clip twice.
    first = int.from_bytes(os.urandom(4), "little") % len(missing)
    missing = missing[first:] + missing[:first]
    tasks = [(root, workplace, clip, settings) for clip in missing]
    if jobs == 1 or len(tasks) == 1:
        _drain(map(_make_task, tasks), len(tasks), progress=progress)
        return
    pool = worker_pool(min(jobs, len(tasks)))
    try:
        _drain(pool.map(_make_task, tasks, chunksize=4), len(tasks), progress=progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _drain(results: Iterable[None], total: int, *, progress: bool) -> None:
    if not progress:
        for _ in results:
            pass
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)  # standard output is for results
    for _ in track(results, description="making toy clips", total=total, console=console):
        pass


def _make_task(task: tuple[Path, Path, ToyClip, ToySettings]) -> None:
    root, workplace, clip, settings = task
    target = root / clip.path
    if target.exists():  # another process was faster
        return
    from crisscross.data.synthetic.render import encode_mp4, render_clip  # a launch that finds all clips needs no numpy

    frames, wave = render_clip(clip, settings)
    content = encode_mp4(frames, wave, frame_rate_hz=settings.frame_rate_hz)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(target, content, beside=workplace)


def _write_whole(target: Path, content: bytes, *, beside: Path) -> None:
    """Write a file so that it is either not there or whole; ``beside`` is on the same file system."""
    partial = beside / f".{uuid.uuid4().hex}"
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
