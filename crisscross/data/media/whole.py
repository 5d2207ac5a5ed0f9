"""Decode the whole of a short clip, and cut windows from it, bit for bit as ``decode_windows`` does.

Reading such a clip never seeks (``decode_windows`` seeks in audio beyond 15 s, and pictures after a seek are those
before it), so its windows are slices of what is decoded once. A clip that has any problem is not for this module:
``decode_windows`` judges window by window.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from crisscross.data.media.audio import SEEK_BEYOND_S, read_all
from crisscross.data.media.streams import DecodeError, choose_stream, open_media, seek
from crisscross.data.media.video import SAME_TIME_S, TimedFrame, TruncatedEnd, pixel_aspect, timed_frames, to_rgb

GUESSED_TIMES = ("avi",)
"""Containers without times, which FFmpeg guesses: after a seek, it may guess otherwise."""

MAX_SECONDS = SEEK_BEYOND_S
"""Longest clip whose windows are slices of the whole."""


class NotWholeError(Exception):
    """The clip must be decoded window by window; the message is the reason."""


@dataclass(frozen=True)
class WholeVideo:
    """All frames of a clip.

    Attributes:
        times_s: (F,) float64, ascending.
        frames: (F, H, W, 3) uint8, in memory or on disk.
    """

    times_s: np.ndarray
    frames: np.ndarray

    def windows(self, starts_s: Sequence[float], *, num_frames: int, frame_rate_hz: float) -> np.ndarray:
        """Return (V, T, H, W, 3) uint8: the frames nearest to each time, the earlier of two equally near."""
        wanted_s = np.array([[start + k / frame_rate_hz for k in range(num_frames)] for start in starts_s])
        after = np.searchsorted(self.times_s, wanted_s - SAME_TIME_S, side="left")
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(self.times_s) - 1)
        nearer = wanted_s - self.times_s[before] > self.times_s[after] - wanted_s + SAME_TIME_S
        chosen = np.where(nearer, after, before)
        return np.stack([self.frames[row] for row in chosen])


@dataclass(frozen=True)
class WholeAudio:
    """All audio of a clip, on the grid of its sample rate.

    Attributes:
        first: index of the first sample on the file's timeline.
        samples: (S,) float32, in memory or on disk; the timeline is zero elsewhere.
    """

    first: int
    samples: np.ndarray

    def windows(self, starts_s: Sequence[float], *, num_samples: int, sample_rate_hz: int) -> np.ndarray:
        """Return (A, num_samples) float32."""
        windows = np.zeros((len(starts_s), num_samples), np.float32)
        for window, start in zip(windows, starts_s, strict=True):
            low = round(start * sample_rate_hz) - self.first
            begin, end = max(low, 0), min(low + num_samples, len(self.samples))
            if end > begin:
                window[begin - low : end - low] = self.samples[begin:end]
        return windows


def decode_whole_video(path: str | Path, canvas: tuple[int, int]) -> WholeVideo:
    """Decode all frames of a clip.

    Args:
        path: the file.
        canvas: (height, width) to scale each frame to.

    Raises:
        NotWholeError: if a frame is corrupt or missing, or the file is no media file.
        OSError: if the file cannot be read.
    """
    shown: list[_Shown] = []
    frames = []
    try:
        with open_media(path) as container:
            stream = choose_stream(container, path, "video")
            if stream is None:
                raise NotWholeError("no video stream")
            for timed in map(_intact, timed_frames(container, stream)):
                shown.append(_Shown.of(timed))
                frames.append(to_rgb(timed.frame, pixel_aspect(stream), canvas))
            if not shown or shown[-1].time_s - shown[0].time_s > MAX_SECONDS:
                raise NotWholeError("the clip is too long, or empty")
            if container.format.name in GUESSED_TIMES:
                _check_seeks(container, stream, shown)
    except DecodeError as error:
        raise NotWholeError(str(error)) from error
    return WholeVideo(np.array([one.time_s for one in shown]), np.stack(frames))


class _Shown(NamedTuple):
    """A frame's time, whether it is a key frame, and a checksum of its luma."""

    time_s: float
    is_key: bool
    checksum: int

    @classmethod
    def of(cls, timed: TimedFrame) -> _Shown:
        return cls(timed.time_s, bool(timed.frame.key_frame), zlib.crc32(timed.frame.planes[0]))


def _intact(timed: TimedFrame | TruncatedEnd) -> TimedFrame:
    if not isinstance(timed, TimedFrame) or timed.problem:
        raise NotWholeError(timed.problem)
    return timed


def _check_seeks(container: av.container.InputContainer, stream: av.VideoStream, shown: Sequence[_Shown]) -> None:
    """Check that reading from each key frame gives the frames and times of reading from the start.

    Raises:
        NotWholeError: if it does not. A reader that lands elsewhere starts again, from the file's start.
    """
    for key in [index for index, frame in enumerate(shown) if frame.is_key]:
        seek(container, stream, shown[key].time_s)
        found = [_Shown.of(_intact(timed)) for timed in timed_frames(container, stream)]
        if found and found[0].is_key and found != list(shown[-len(found) :]):
            raise NotWholeError(f"from {shown[key].time_s:.3f} s on, frames have other times after a seek")


def decode_whole_audio(path: str | Path, sample_rate_hz: int) -> WholeAudio:
    """Decode all audio of a clip.

    Raises:
        NotWholeError: if samples are missing or not finite, or the file is no media file.
        OSError: if the file cannot be read.
    """
    try:
        with open_media(path) as container:
            stream = choose_stream(container, path, "audio")
            if stream is None:
                raise NotWholeError("no audio stream")
            first, samples = read_all(container, stream, path, sample_rate_hz=sample_rate_hz, max_seconds=MAX_SECONDS)
    except DecodeError as error:
        raise NotWholeError(str(error)) from error
    return WholeAudio(first, samples)
