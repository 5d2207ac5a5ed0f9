"""Decode windows of a media file: uint8 frames and mono audio, each at a fixed rate.

Times are seconds on the file's own presentation timeline, shared by video and audio, so the two stay aligned whatever
the streams' own starts. Both views of a sample are decoded in one opening of the file and, per stream, in one forward
pass. See ``streams.py`` and ``video.py`` for irregular files, ``audio.py`` for resampling.

Frames look as in a player: the container's rotation and mirroring are applied, non-square pixels are made square, the
result is 8-bit RGB in full range, and transparency is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

from crisscross.data.media.audio import read_waveforms
from crisscross.data.media.probe import Probe, probe
from crisscross.data.media.streams import DecodeError, SeekError, choose_stream, open_media
from crisscross.data.media.video import FrameReader, TimedFrame, to_rgb

__all__ = ["DecodeError", "Probe", "decode_windows", "probe"]
AnyStream = TypeVar("AnyStream", av.VideoStream, av.AudioStream)


def decode_windows(
    path: str | Path,
    *,
    video_starts_s: Sequence[float],
    num_frames: int,
    frame_rate_hz: float,
    canvas: tuple[int, int] | None,
    audio_starts_s: Sequence[float],
    audio_seconds: float,
    sample_rate_hz: int,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Decode windows of video and of audio from one file.

    Frame k of a window is the one nearest to ``start + k / frame_rate_hz``, the earlier of two equally near. Outside
    the stream, the first or last frame is repeated, and audio is zero.

    Args:
        path: the file.
        video_starts_s: start of each video window in seconds.
        num_frames: frames per window, T.
        frame_rate_hz: frames per second of the result (16 in the paper, section 4.1).
        canvas: (height, width) to scale each frame to, without keeping its aspect; None means the displayed size.
        audio_starts_s: start of each audio window in seconds.
        audio_seconds: length of an audio window.
        sample_rate_hz: samples per second of the result (16,000 in the paper).

    Returns:
        ``(video, audio)``: (V, T, H, W, 3) uint8 and (A, round(audio_seconds * sample_rate_hz)) float32; None for a
        modality without windows.

    Raises:
        DecodeError: if the file cannot be opened, lacks a stream, or is damaged within a window.
        ValueError: if an argument is out of range.
    """
    num_samples = round(audio_seconds * sample_rate_hz)
    _check(video_starts_s, num_frames, frame_rate_hz, canvas, audio_starts_s, num_samples)
    video = audio = None
    with open_media(path) as container:
        if len(audio_starts_s):  # before video, as it is read from the file's start without a seek

            def read_audio(source: av.container.InputContainer, seeks: bool) -> np.ndarray:
                stream = _needed(choose_stream(source, path, "audio"), path, "audio")
                wanted = {"num_samples": num_samples, "sample_rate_hz": sample_rate_hz}
                return read_waveforms(source, stream, path, audio_starts_s, seeks=seeks, **wanted)

            audio = _or_from_the_start(read_audio, path, container)
        if len(video_starts_s):

            def read_video(source: av.container.InputContainer, seeks: bool) -> np.ndarray:
                at_start = audio is None or source is not container
                stream = _needed(choose_stream(source, path, "video"), path, "video")
                reader = FrameReader(source, stream, path, seeks=seeks, at_start=at_start)
                return _read_windows(reader, video_starts_s, num_frames, frame_rate_hz, canvas)

            video = _or_from_the_start(read_video, path, container)
    return video, audio


def _or_from_the_start(
    read: Callable[[av.container.InputContainer, bool], np.ndarray],
    path: str | Path,
    container: av.container.InputContainer,
) -> np.ndarray:
    """Read with seeks, or from the start if a seek fails."""
    try:
        return read(container, True)
    except SeekError:
        with open_media(path) as fresh:
            return read(fresh, False)


def _needed(stream: AnyStream | None, path: str | Path, kind: str) -> AnyStream:
    if stream is None:
        raise DecodeError.about(path, f"no {kind} stream")
    return stream


def _read_windows(
    reader: FrameReader,
    starts_s: Sequence[float],
    num_frames: int,
    frame_rate_hz: float,
    canvas: tuple[int, int] | None,
) -> np.ndarray:
    """Return (V, T, H, W, 3) uint8.

    Equal windows and repeated frames are converted once.
    """
    distinct_s = sorted(set(starts_s))
    wanted = sorted(
        (start + k / frame_rate_hz, row, k) for row, start in enumerate(distinct_s) for k in range(num_frames)
    )
    shown = _shown(reader, [time_s for time_s, _, _ in wanted], frame_rate_hz, canvas)
    first = next(shown)
    windows = np.empty((len(distinct_s), num_frames, *first.shape), dtype=np.uint8)
    for (_, row, k), pixels in zip(wanted, chain([first], shown), strict=True):
        windows[row, k] = pixels
    if list(starts_s) == distinct_s:
        return windows
    return windows[[distinct_s.index(start) for start in starts_s]]


def _shown(
    reader: FrameReader, times_s: Sequence[float], frame_rate_hz: float, size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """Yield the pixels of the frame nearest to each of ascending times.

    All have the given size, or else that of the first.
    """
    shown: TimedFrame | None = None
    previous_s = -math.inf
    for time_s in times_s:
        if time_s - previous_s > 1.5 / frame_rate_hz:
            reader.move_to(time_s)
        previous_s = time_s
        nearest = reader.nearest(time_s)
        if nearest is not shown:
            shown, pixels = nearest, to_rgb(nearest.frame, reader.pixel_aspect, size)
            size = pixels.shape[0], pixels.shape[1]
        yield pixels


def _check(
    video_starts_s: Sequence[float],
    num_frames: int,
    frame_rate_hz: float,
    canvas: tuple[int, int] | None,
    audio_starts_s: Sequence[float],
    num_samples: int,
) -> None:
    if not all(math.isfinite(start) for start in (*video_starts_s, *audio_starts_s)):
        raise ValueError(f"window starts must be finite, got video {video_starts_s}, audio {audio_starts_s}")
    if len(video_starts_s) and (num_frames < 1 or not frame_rate_hz > 0):
        raise ValueError(f"num_frames and frame_rate_hz must be positive, got {num_frames} and {frame_rate_hz}")
    if len(audio_starts_s) and num_samples < 1:
        raise ValueError(f"audio_seconds * sample_rate_hz must come to a sample or more, got {num_samples} samples")
    if canvas is not None and min(canvas) < 1:
        raise ValueError(f"canvas must be (height, width), both positive, or None, got {canvas}")
