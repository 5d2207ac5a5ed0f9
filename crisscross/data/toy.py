"""The demo's dataset: generated mp4 files (H.264 + AAC), told apart only by how they move and sound.

``generate`` fills ``<root>/{train,test}/<class>/<class>_<split>_<index>.mp4``. Call it again, from as many
processes as you like, and it makes what is missing: a clip is written beside, synced and renamed, so that a file
that is there is whole. ``toy.json`` says with which settings the folder was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from crisscross.data.workers import num_usable_cores, worker_pool, working_folder

TOY_VERSION = 3  # raise when the same settings would give other clips
SPLITS = ("train", "test")
CLASSES = ("orbit", "slide", "bounce", "pulse", "spin", "zigzag", "blink", "meet", "shake", "fall")


@dataclass(frozen=True)
class ToySettings:
    """What the generated clips are like. The defaults fit a demo of minutes on two cores (chosen by us).

    Raises:
        ValueError: a value that gives no valid clips.
    """

    num_classes: int = 10
    train_clips_per_class: int = 32
    test_clips_per_class: int = 16
    seconds: float = 5.0
    frame_size_px: int = 40
    frame_rate_hz: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        checks = [
            ("num_classes", 2 <= self.num_classes <= len(CLASSES), f"2 to {len(CLASSES)}"),
            ("train_clips_per_class", self.train_clips_per_class >= 0, "0 or more"),
            ("test_clips_per_class", self.test_clips_per_class >= 0, "0 or more"),
            ("seconds", 0.5 <= self.seconds <= 600, "0.5 to 600"),
            (
                "frame_size_px",
                32 <= self.frame_size_px <= 512 and self.frame_size_px % 2 == 0,
                "even, 32 to 512",
            ),
            ("frame_rate_hz", 8 <= self.frame_rate_hz <= 60, "8 to 60"),
        ]
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"toy clips: got {name}={getattr(self, name)}; allowed: {allowed}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in use."""
        return CLASSES[: self.num_classes]

    def fingerprint(self) -> str:
        """16 hex digits that stand for the settings and the generator's version."""
        text = json.dumps({"toy_version": TOY_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ToyClip:
    """Names one clip: its split, its class and its place among the split's clips of that class."""

    split: str
    class_index: int
    index: int

    @property
    def path(self) -> Path:
        """Path relative to the dataset's root."""
        name = CLASSES[self.class_index]
        return Path(self.split, name, f"{name}_{self.split}_{self.index:04d}.mp4")


def list_clips(settings: ToySettings) -> list[ToyClip]:
    """All clips of the dataset, class after class within split after split."""
    counts = {"train": settings.train_clips_per_class, "test": settings.test_clips_per_class}
    return [
        ToyClip(split, class_index, index)
        for split in SPLITS
        for class_index in range(settings.num_classes)
        for index in range(counts[split])
    ]


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
    from crisscross.data.toy_clips import encode_mp4, render_clip  # a launch that finds all clips needs no numpy

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
