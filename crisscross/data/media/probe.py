"""Probe a media file once, before training: whether it decodes, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import av
import numpy as np

from crisscross.data.media.audio import chunks, mono
from crisscross.data.media.streams import (
    DecodeError,
    Kind,
    SeekError,
    choose_stream,
    decoded_frames,
    is_seekable,
    open_media,
    seek,
)
from crisscross.data.media.video import (
    FrameReader,
    TimedFrame,
    TruncatedEnd,
    displayed_size,
    pixel_aspect,
    timed_frames,
    to_rgb,
)

NUM_START_FRAMES = 8  # decoded at the start; enough to measure the frame rate
TAIL_S = 0.5  # the end is decoded from this long before the end in the header
SAME_FRAME_LEVELS = 2.0  # mean difference in gray levels up to which two decodings count as one frame


@dataclass(frozen=True)
class Probe:
    """What decoding a media file finds.

    Times are seconds on the file's presentation timeline.

    Attributes:
        video_start_s, video_end_s: start of the first frame, end of the last; None without usable video.
        audio_start_s, audio_end_s: start of the first sample, end of the last; None without usable audio.
        frame_rate_hz: frames per second; None if unknown.
        width, height: as displayed: rotation applied, non-square pixels made square.
        audio_rate_hz, audio_channels: of the stored stream.
        num_frames_hint: number of frames in the header (often one too many), or as counted.
        video_problem, audio_problem: why there is no usable stream of the kind; "" if there is one.
    """

    video_start_s: float | None = None
    video_end_s: float | None = None
    audio_start_s: float | None = None
    audio_end_s: float | None = None
    frame_rate_hz: float | None = None
    width: int | None = None
    height: int | None = None
    audio_rate_hz: int | None = None
    audio_channels: int | None = None
    num_frames_hint: int | None = None
    video_problem: str = ""
    audio_problem: str = ""


class _UnusableError(Exception):
    """A stream cannot be used; the message is the reason."""


def probe(path: str | Path, *, thorough: bool = False) -> Probe:
    """Decode a file at the start, the middle and the end.

    The audio is decoded completely (10 s take 7 ms), the video at the three positions, or completely with ``thorough``,
    which also checks that a seek to the middle gives the same frame as decoding from the start. A stream that does not
    decode counts as absent, with the reason.

    Args:
        path: the file.
        thorough: whether to decode every frame. A file accepted this way cannot fail later unless it changes.

    Raises:
        DecodeError: if the file is missing, empty or cannot be opened.
    """
    found = Probe()
    try:
        found = _probe_video(found, path, thorough)
    except _UnusableError as error:
        found = replace(found, video_problem=str(error))
    try:
        return _probe_audio(found, path)
    except _UnusableError as error:
        return replace(found, audio_problem=str(error))


def _probe_video(found: Probe, path: str | Path, thorough: bool) -> Probe:
    with open_media(path) as container:
        stream = choose_stream(container, path, "video")
        if stream is None:
            only_cover = len(container.streams.video) > 0
            raise _UnusableError("no video stream" + (" (only a cover picture)" if only_cover else ""))
        index = container.streams.video.index(stream)
        start = list(islice(timed_frames(container, stream), NUM_START_FRAMES))
        if not start:
            raise _UnusableError(_why_nothing(path, "video", index, "the video stream holds no frames"))
        first = start[0]
        if isinstance(first, TruncatedEnd) or first.dropped:
            raise _UnusableError(f"does not decode at the start: {first.dropped}")
        height, width = displayed_size(first.frame, pixel_aspect(stream))
        claimed_end_s = _claimed_end_s(container, stream)
        times_s = [frame.time_s for frame in start if isinstance(frame, TimedFrame)]
        rate_hz = _frame_rate_hz(stream, times_s)
        num_frames = stream.frames or None
        seekable = is_seekable(container)
    if thorough or not seekable or claimed_end_s is None:
        last, num_frames = _walk(path, index, None)
    else:
        last, _ = _walk(path, index, max(claimed_end_s - TAIL_S, first.time_s))
    frame = last.frame
    lasts_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / (rate_hz or 25)
    middle_s = (first.time_s + last.time_s) / 2
    _check_middle(path, index, middle_s, thorough)
    return replace(
        found,
        video_start_s=first.time_s,
        video_end_s=last.time_s + lasts_s,
        frame_rate_hz=rate_hz,
        width=width,
        height=height,
        num_frames_hint=num_frames,
    )


def _walk(path: str | Path, index: int, from_s: float | None) -> tuple[TimedFrame, int]:
    """Decode to the end of a stream.

    Return the last frame and the number of frames. Decoding starts at ``from_s``, None = at the start. An error after a
    seek may be due to the seek, so the whole stream is then decoded.
    """
    last: TimedFrame | None = None
    num_frames, problem = 0, ""
    with open_media(path) as container:
        stream = container.streams.video[index]
        try:
            if from_s is not None:
                seek(container, stream, from_s)
            for frame in timed_frames(container, stream):
                if isinstance(frame, TruncatedEnd) or frame.problem:
                    problem = frame.problem
                    break
                last, num_frames = frame, num_frames + 1
        except SeekError as error:
            problem = str(error)
    if from_s is not None and (problem or last is None):
        return _walk(path, index, None)
    if problem:
        raise _UnusableError(f"does not decode after {last.time_s if last else 0:.2f} s: {problem}")
    if last is None:
        raise _UnusableError("a second reading of the file finds no frame")
    return last, num_frames


def _check_middle(path: str | Path, index: int, middle_s: float, thorough: bool) -> None:
    """Read the middle as training does.

    With ``thorough``, compare it with decoding from the start.
    """
    try:
        try:
            sought = _frame_at(path, index, middle_s, seeks=True)
        except SeekError:
            sought = _frame_at(path, index, middle_s, seeks=False)
        if thorough:
            read = _frame_at(path, index, middle_s, seeks=False)
            if np.abs(sought - read).mean() > SAME_FRAME_LEVELS:
                raise _UnusableError("a seek to the middle shows another frame than decoding from the start")
    except DecodeError as error:
        reason = error.reason.partition(": ")[2] or error.reason
        raise _UnusableError(f"does not decode at the middle: {reason}") from error


def _frame_at(path: str | Path, index: int, time_s: float, *, seeks: bool) -> np.ndarray:
    with open_media(path) as container:
        reader = FrameReader(container, container.streams.video[index], path, seeks=seeks)
        reader.move_to(time_s)
        return to_rgb(reader.nearest(time_s).frame, reader.pixel_aspect, None).astype(np.int16)


def _claimed_end_s(container: av.container.InputContainer, stream: av.stream.Stream) -> float | None:
    """Return the stream's end by the header, which may be wrong."""
    if stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if container.duration:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return None


def _frame_rate_hz(stream: av.VideoStream, times_s: list[float]) -> float | None:
    """Return the frame rate of a stream.

    This is the header's rate. The measured rate replaces it if it is missing, or wrong by more than a factor of 2.
    """
    claimed = float(stream.average_rate) if stream.average_rate else None
    steps_s = np.diff(times_s)
    if len(steps_s) == 0 or not np.median(steps_s) > 0:
        return claimed
    measured = float(1 / np.median(steps_s))
    return claimed if claimed and 0.5 <= claimed / measured <= 2 else measured


def _probe_audio(found: Probe, path: str | Path) -> Probe:
    end_s: float | None = None
    with open_media(path) as container:
        stream = choose_stream(container, path, "audio")
        if stream is None:
            raise _UnusableError("no audio stream")
        index = container.streams.audio.index(stream)
        may_hold_nan = stream.codec_context.name.startswith("pcm_f")
        try:
            for chunk in chunks(container, stream, path):
                frame = chunk.frame
                if frame is None or chunk.dropped:
                    raise _UnusableError(f"the audio does not decode after {end_s or 0:.2f} s: {chunk.dropped}")
                if may_hold_nan and not np.isfinite(mono(frame)).all():
                    raise _UnusableError("the audio holds values that are not finite")
                if end_s is None:
                    found = replace(
                        found,
                        audio_start_s=chunk.first / frame.sample_rate,
                        audio_rate_hz=frame.sample_rate,
                        audio_channels=frame.layout.nb_channels,
                    )
                end_s = chunk.end / frame.sample_rate
        except DecodeError as error:
            raise _UnusableError(error.reason) from error
    if end_s is None:
        raise _UnusableError(_why_nothing(path, "audio", index, "the audio stream holds no samples"))
    return replace(found, audio_end_s=end_s)


def _why_nothing(path: str | Path, kind: Kind, index: int, otherwise: str) -> str:
    with open_media(path) as container:
        stream = (container.streams.video if kind == "video" else container.streams.audio)[index]
        frames = [frame for frame, _ in islice(decoded_frames(container, stream), 1) if frame is not None]
    return "no timestamps" if frames else otherwise
