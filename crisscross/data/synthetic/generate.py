"""Generate the demo's dataset: mp4 files (H.264 + AAC) whose classes differ only in motion and sound.

``generate`` fills ``<root>/{train,val,test}/<class>/<class>_<split>_<index>.mp4``. Call it again, from any number of
processes, and it makes what is missing: a clip is written to a temporary file, synced and renamed, so every clip that
exists is complete. ``toy.json`` holds the settings of the folder.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path

from crisscross.data.parallel import run_resumable
from crisscross.data.synthetic.spec import SPLITS, SYNTHETIC_VERSION, SyntheticClip, SyntheticSettings, list_clips


def generate(
    root: str | os.PathLike[str], settings: SyntheticSettings, *, jobs: int | None = None, progress: bool = True
) -> None:
    """Make the clips that are missing under ``root``.

    Safe to interrupt, to call again and to call from several processes at once, which then share the work.

    Args:
        root: the dataset's folder; made if missing.
        settings: the clips to make.
        jobs: processes; None = one per usable core.
        progress: show a progress bar.

    Raises:
        ValueError: if the folder holds something else, or ``jobs`` is below 1.
        OSError: if the folder cannot be written.
    """
    root = Path(root).absolute()
    try:
        run_resumable(
            list_clips(settings),
            functools.partial(_make_clip, root, settings),
            lambda clip: (root / clip.path).exists(),
            folder=root,
            claim=functools.partial(_claim, root, settings),
            label="making toy clips",
            jobs=jobs,
            progress=progress,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot write the toy clips to {root}: {reason}; free space, or choose a writable folder"
        raise OSError(error.errno, message) from error


def _claim(root: Path, settings: SyntheticSettings) -> None:
    """Write the settings to the folder.

    Raises:
        ValueError: if the folder holds something else.
    """
    mark = root / "toy.json"
    remedy = "choose an empty folder, or delete this one if nothing needs it"
    if not mark.exists():
        taken = [split for split in SPLITS if (root / split).exists()]
        if taken and not mark.exists():
            raise ValueError(f"{root} has a folder {taken[0]!r} but no toy.json: not toy clips; {remedy}")
        content = {
            "fingerprint": settings.fingerprint(),
            "toy_version": SYNTHETIC_VERSION,
            "settings": asdict(settings),
        }
        _write_atomically(mark, json.dumps(content, indent=2).encode(), partial_in=root)
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{mark} is not readable as the mark of toy clips; {remedy}") from None
    if found != settings.fingerprint():
        raise ValueError(
            f"{root} holds toy clips of other settings: fingerprint {found}, wanted {settings.fingerprint()}; {remedy}"
        )


def _make_clip(root: Path, settings: SyntheticSettings, workplace: Path, clip: SyntheticClip) -> None:
    target = root / clip.path
    if target.exists():  # another process was faster
        return
    # Here, because a launch imports this module and must not import PyAV and NumPy.
    from crisscross.data.synthetic.render import encode_mp4, render_clip

    frames, wave = render_clip(clip, settings)
    content = encode_mp4(frames, wave, frame_rate_hz=settings.frame_rate_hz)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(target, content, partial_in=workplace)


def _write_atomically(target: Path, content: bytes, *, partial_in: Path) -> None:
    """Write a file atomically; ``partial_in`` is on the same file system."""
    partial = partial_in / f".{uuid.uuid4().hex}"
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
