"""Compact copies of single clips, and what to compare them by."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from crisscross.data.build_manifest import build_manifest
from crisscross.data.manifest import Manifest, read_manifest
from crisscross.data.media.decode import decode_windows
from crisscross.data.media.probe import probe
from crisscross.data.media.streams import choose_stream, open_media
from crisscross.data.media.video import timed_frames
from crisscross.data.prepare.compact_encode import CompactSettings, Streams, write_copy

SETTINGS = CompactSettings(short_side_px=32, crf=18)


def streams_of(path: Path) -> Streams:
    found = probe(path)
    times = (found.video_start_s, found.video_end_s, found.audio_start_s, found.audio_end_s)
    return Streams(*(math.nan if time_s is None else time_s for time_s in times))


def picture_times_s(path: Path) -> list[float]:
    with open_media(path) as container:
        return [picture.time_s for picture in timed_frames(container, choose_stream(container, path, "video"))]


def sound(path: Path, start_s: float, seconds: float) -> np.ndarray:
    nothing = {"video_starts_s": [], "num_frames": 1, "frame_rate_hz": 1, "canvas": None}
    found = decode_windows(path, **nothing, audio_starts_s=[start_s], audio_seconds=seconds, sample_rate_hz=16000)
    return found[1][0]


def frames(path: Path, starts_s: list[float], canvas: tuple[int, int] | None) -> np.ndarray:
    wanted = {"num_frames": 8, "frame_rate_hz": 16, "canvas": canvas}
    nothing = {"audio_starts_s": [], "audio_seconds": 0, "sample_rate_hz": 16000}
    return decode_windows(path, video_starts_s=starts_s, **wanted, **nothing)[0]


def peak_ratio_db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def copied(source: Path, settings: CompactSettings = SETTINGS) -> Path:
    copy = source.with_name(f"copy of {source.stem}.mp4")
    write_copy(source, copy, streams_of(source), settings)
    return copy


def read_copy(target: Path, stream: str) -> Manifest:
    directory = target.with_name(f"{target.name}-manifest")
    build_manifest(directory, root=None, csv=target / "clips.csv", require=(stream,), jobs=1, progress=False)
    return read_manifest(directory)
