"""Windows of a media file as arrays: uint8 pictures at a fixed rate, and mono sound at a fixed rate.

Times are seconds on the file's own presentation timeline, shared by picture and sound, so the two stay aligned
whatever the streams' own starts. Both views of a sample are cut in one opening of the file and, per stream, in one
forward pass. ``streams.py`` and ``video.py`` say what is done about odd files, ``audio.py`` how sound is
resampled.

Pictures are shown as a player shows them: rotation and mirroring of the container applied, non-square pixels
made square, 8 bits, RGB in full range, transparency dropped.
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
from crisscross.data.media.video import Picture, PictureReader, to_rgb

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
    """Decode windows of pictures and of sound from one file.

    Frame k of a window is the one whose time is nearest to ``start + k / frame_rate_hz``, the earlier of two
    equally near. Before the first and after the last frame that frame is repeated. Sound outside the stream is zeros.

    Args:
        path: the file.
        video_starts_s: where each window of pictures starts, in seconds.
        num_frames: frames a window, T.
        frame_rate_hz: frames a second wanted (16 in the paper, section 4.1).
        canvas: (height, width) to which each picture is scaled, its shape not kept; None for the displayed size.
        audio_starts_s: where each window of sound starts, in seconds.
        audio_seconds: the length of each.
        sample_rate_hz: samples a second wanted (16,000 in the paper).

    Returns:
        ``(video, audio)``: uint8 of shape (V, T, H, W, 3), or None when no window is asked; float32 of shape
        (A, round(audio_seconds * sample_rate_hz)), or None when no window is asked.

    Raises:
        DecodeError: the file cannot be opened, lacks a stream that is asked for, or is damaged within a window.
        ValueError: a setting is impossible.
    """
    num_samples = round(audio_seconds * sample_rate_hz)
    _check(video_starts_s, num_frames, frame_rate_hz, canvas, audio_starts_s, num_samples)
    video = audio = None
    with open_media(path) as container:
        if len(audio_starts_s):  # first, as it is read from the file's start and needs no seek

            def read_audio(source: av.container.InputContainer, seeks: bool) -> np.ndarray:
                stream = _needed(choose_stream(source, path, "audio"), path, "audio")
                wanted = {"num_samples": num_samples, "sample_rate_hz": sample_rate_hz}
                return read_waveforms(source, stream, path, audio_starts_s, seeks=seeks, **wanted)

            audio = _or_from_the_start(read_audio, path, container)
        if len(video_starts_s):

            def read_video(source: av.container.InputContainer, seeks: bool) -> np.ndarray:
                at_start = audio is None or source is not container
                stream = _needed(choose_stream(source, path, "video"), path, "video")
                reader = PictureReader(source, stream, path, seeks=seeks, at_start=at_start)
                return _read_windows(reader, video_starts_s, num_frames, frame_rate_hz, canvas)

            video = _or_from_the_start(read_video, path, container)
    return video, audio


def _or_from_the_start(
    read: Callable[[av.container.InputContainer, bool], np.ndarray],
    path: str | Path,
    container: av.container.InputContainer,
) -> np.ndarray:
    """Read with seeks; where a seek does not do what it should, open the file anew and read from the start."""
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
    reader: PictureReader,
    starts_s: Sequence[float],
    num_frames: int,
    frame_rate_hz: float,
    canvas: tuple[int, int] | None,
) -> np.ndarray:
    """Return uint8 of shape (V, T, H, W, 3), each distinct window and each distinct picture converted once."""
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
    reader: PictureReader, times_s: Sequence[float], frame_rate_hz: float, size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """Yield the pixels of the picture nearest to each of rising times, in one size: the given or the first one's."""
    picture: Picture | None = None
    previous_s = -math.inf
    for time_s in times_s:
        if time_s - previous_s > 1.5 / frame_rate_hz:
            reader.move_to(time_s)
        previous_s = time_s
        nearest = reader.nearest(time_s)
        if nearest is not picture:
            picture, pixels = nearest, to_rgb(nearest.frame, reader.pixel_aspect, size)
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
