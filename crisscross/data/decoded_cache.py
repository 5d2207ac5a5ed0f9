"""Decoded clips on node-local disk, so that a small dataset is not decoded anew in every epoch.

``data.cache`` is

- ``off``: clips are decoded whenever they are read.
- ``auto``: decoded clips are kept if they come to at most ``AUTO_BYTES`` and half of the free space: in a Slurm job in
  ``$SLURM_TMPDIR``, elsewhere in the manifest's folder. A Slurm job without that variable has none.
- a folder: they are kept there; too little space is an error that names the space needed.

The processes of a node share the files, which the system keeps in memory while there is room. A clip is decoded when it
is first read, by any process, and written to a temporary file that is then renamed: what is there is complete.
A file's name is a hash of the clip's path, size and time, of the canvas, the sample rate and ``VERSION``, so a changed
clip is decoded again. Windows are the same bits as without the cache; clips of which that is not certain, those longer
than 15 s or with any damage, are decoded as without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from crisscross.config.data import DataSettings
from crisscross.config.views import ViewSettings
from crisscross.data.manifest import Manifest
from crisscross.data.media.whole import (
    MAX_SECONDS,
    NotWholeError,
    WholeAudio,
    WholeVideo,
    decode_whole_audio,
    decode_whole_video,
)
from crisscross.data.staging import SPARE_BYTES, local_disk, own_folder

logger = logging.getLogger(__name__)

VERSION = 2
"""Raise it when decoding gives other bits."""

AUTO_BYTES = 8 * 2**30  # ours
"""Most bytes of decoded clips that ``auto`` keeps in a node's folder, over all datasets."""

UNUSED_S = 86_400.0  # ours: after a day, ``auto`` removes another dataset's clips if it needs the room


class DecodedCache:
    """Decoded streams of short clips in a folder; see the module's text."""

    def __init__(self, folder: Path, views: ViewSettings) -> None:
        self._folder = folder
        self._canvas: tuple[int, int] = views.video.canvas_px
        self._rate_hz = views.audio.sample_rate_hz
        self._writes = True

    def video(self, path: Path, stamp: str, views: ViewSettings, starts_s: Sequence[float]) -> np.ndarray | None:
        """Return windows of frames (V, T, H, W, 3) uint8; None if they must be decoded.

        Args:
            path: the clip.
            stamp: its path, size and time, as the manifest has them.
            views: number and rate of the frames.
            starts_s: start of each window in seconds.
        """
        if views.video.canvas_px != self._canvas:
            return None
        found = self._stream(f"video {self._canvas} {stamp}", lambda: _video_arrays(path, self._canvas))
        if found is None:
            return None
        num_frames, rate_hz = views.video.num_frames, views.video.frame_rate_hz
        return WholeVideo(*found).windows(starts_s, num_frames=num_frames, frame_rate_hz=rate_hz)

    def audio(self, path: Path, stamp: str, views: ViewSettings, starts_s: Sequence[float]) -> np.ndarray | None:
        """Return waveforms (A, S) float32; None if they must be decoded. See ``video``."""
        rate_hz = views.audio.sample_rate_hz
        if rate_hz != self._rate_hz:
            return None
        found = self._stream(f"audio {rate_hz} {stamp}", lambda: _audio_arrays(path, rate_hz))
        if found is None:
            return None
        whole = WholeAudio(int(found[0][0]), found[1])
        return whole.windows(starts_s, num_samples=round(views.audio.seconds * rate_hz), sample_rate_hz=rate_hz)

    def _stream(
        self, key: str, decode: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a stream's two arrays, from its file or decoded; None if the clip is not for the cache."""
        digest = hashlib.sha256(f"{VERSION} {key}".encode()).hexdigest()[:32]
        file = self._folder / digest[:2] / digest
        try:
            return _read(file)
        except (OSError, ValueError, EOFError):  # missing, or damaged by a crash of the machine
            pass
        if file.with_suffix(".not").exists():
            return None
        try:
            arrays = decode()
        except OSError:
            return None  # decoding it as without the cache raises the error
        except NotWholeError:
            self._write(file.with_suffix(".not"), ())
            return None
        self._write(file, arrays)
        return arrays

    def _write(self, file: Path, arrays: Sequence[np.ndarray]) -> None:
        """Write arrays atomically; after a failure nothing more is written."""
        if not self._writes:
            return
        partial = file.with_name(f".{uuid.uuid4().hex}.part")
        try:
            file.parent.mkdir(exist_ok=True)
            with partial.open("xb") as target:
                for array in arrays:
                    np.lib.format.write_array(target, array, allow_pickle=False)
            partial.replace(file)
        except OSError as error:
            self._writes = False
            partial.unlink(missing_ok=True)
            logger.warning("data.cache: cannot write %s (%s): other clips are decoded each time", file, error.strerror)


def open_cache(manifest: Manifest, settings: DataSettings, views: ViewSettings) -> DecodedCache | None:
    """Return the cache of a dataset, as ``data.cache`` sets; None without one.

    A line in the log names the folder, or why there is none.

    Args:
        manifest: the clips.
        settings: of the data; ``name`` and ``cache`` are used.
        views: canvas and sample rate.

    Raises:
        ValueError: if the folder cannot be used.
        OSError: if the folder cannot be written.
    """
    if settings.cache is None or settings.cache == "off":
        return None
    automatic = settings.cache == "auto"
    num_bytes = decoded_bytes(manifest.clips, views)
    try:
        parent = _parent(manifest, settings.cache)
        content = [manifest.data_hash, *views.video.canvas_px, views.audio.sample_rate_hz, VERSION]
        folder = parent / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        if not folder.exists():
            _make_room(parent, num_bytes, limit=AUTO_BYTES if automatic else None)
            folder.mkdir(exist_ok=True)
        (folder / "bytes").write_text(str(num_bytes))
    except (OSError, ValueError) as error:
        if not automatic:
            raise
        logger.info("data.cache=auto: clips are decoded each time: %s", error)
        return None
    logger.info("decoded clips are kept in %s, up to %.2f GB", folder, num_bytes / 1e9)
    return DecodedCache(folder, views)


def _parent(manifest: Manifest, cache: str) -> Path:
    """Return the folder for all decoded clips.

    Raises:
        OSError: if it cannot be written, or ``auto`` finds no disk of the node's own.
    """
    own = os.environ.get("SLURM_TMPDIR")  # which Slurm removes; $TMPDIR may be the node's /tmp, which stays
    disk = (Path(own) if own else None) if cache == "auto" else local_disk(cache, key="data.cache")
    if disk is not None:
        return own_folder(disk, name="crisscross-decoded", key="data.cache")
    if "SLURM_JOB_ID" in os.environ:
        raise OSError("there is no $SLURM_TMPDIR here")
    folder = manifest.directory / "decoded"
    folder.mkdir(exist_ok=True)
    return folder


def decoded_bytes(clips: pd.DataFrame, views: ViewSettings) -> int:
    """Return the size of the decoded clips: frames x height x width x 3, and 4 bytes per sample of audio.

    Clips that are too long for the cache do not count.
    """
    height, width = views.video.canvas_px
    total = 0.0
    for stream, rate, unit_bytes in (
        ("video", clips["frame_rate_hz"], 3 * height * width),
        ("audio", views.audio.sample_rate_hz, 4),
    ):
        seconds = (clips[f"{stream}_end_s"] - clips[f"{stream}_start_s"]).fillna(0)
        total += float((seconds.where(seconds <= MAX_SECONDS, 0) * rate).fillna(0).sum()) * unit_bytes
    return round(total)


def _make_room(parent: Path, num_bytes: int, *, limit: int | None) -> None:
    """Check that the decoded clips fit; for ``auto``, remove other datasets' clips that are not in use.

    Raises:
        OSError: if they do not fit.
    """
    if limit is not None:
        for old in sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime):
            used = sum(map(_recorded_bytes, parent.iterdir()))
            if used + num_bytes > limit and time.time() - (old / "bytes").stat().st_mtime > UNUSED_S:
                shutil.rmtree(old, ignore_errors=True)
        used = sum(map(_recorded_bytes, parent.iterdir()))
        if used + num_bytes > limit:
            raise OSError(
                f"they come to {num_bytes / 1e9:.1f} GB, {parent} may hold {(limit - used) / 1e9:.1f} GB more"
            )
    free = shutil.disk_usage(parent).free // (1 if limit is None else 2)
    if num_bytes + SPARE_BYTES > free:
        raise OSError(
            f"data.cache: the decoded clips need {num_bytes / 1e9:.2f} GB, {parent} has room for {free / 1e9:.2f} GB:"
            " choose another folder, or set data.cache=off"
        )


def _recorded_bytes(folder: Path) -> int:
    try:
        return int((folder / "bytes").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays of a file, the second one mapped from disk."""
    with file.open("rb") as source:
        first = np.lib.format.read_array(source, allow_pickle=False)
        np.lib.format.read_magic(source)
        shape, _, dtype = np.lib.format.read_array_header_1_0(source)
        return first, np.memmap(source, dtype, "r", source.tell(), shape)


def _video_arrays(path: Path, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    whole = decode_whole_video(path, canvas)
    return whole.times_s, whole.frames


def _audio_arrays(path: Path, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    whole = decode_whole_audio(path, sample_rate_hz)
    return np.array([whole.first]), whole.samples
