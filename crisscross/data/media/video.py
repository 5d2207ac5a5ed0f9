"""Decoded frames in order of time, and their conversion from and to RGB arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation

from crisscross.data.media.display_order import DisplayOrder
from crisscross.data.media.streams import DecodeError, NonRefSkip, SeekError, decoded_frames, is_seekable, seek, tick_of

# Area averaging is the cheapest filter that does not alias; bicubic is used if a side grows. The flags make the result
# the same on every processor, at no measurable cost.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_SHRINK, _GROW = Interpolation.AREA | _EXACT, Interpolation.BICUBIC | _EXACT
MAX_PIXEL_ASPECT = 10.0  # ours: a larger ratio in the header counts as an error


@dataclass(frozen=True)
class Rotation:
    """A rotation by a multiple of 90 degrees and a mirroring.

    They are applied in the order of the attributes.
    """

    transposed: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return a rotated view of an array of shape (H, W, C)."""
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return pixels[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


def rotation_of(frame: av.VideoFrame) -> Rotation:
    """Return the rotation of the container's display matrix, rounded to 90 degrees."""
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # typed as a dict of other keys
    if side_data is None:
        return Rotation()
    # x' = a x + c y and y' = b x + d y, in 16.16 fixed point, rows (a b u) (c d v) (tx ty w)
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Rotation(transposed=True, flip_horizontal=c < 0, flip_vertical=b < 0)
    return Rotation(flip_horizontal=a < 0, flip_vertical=d < 0)


def pixel_aspect(stream: av.video.VideoStream) -> float:
    """Return the width of a stored pixel over its height.

    Return 1 if the header lacks it or is wrong.
    """
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT else 1.0


def displayed_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """Return the displayed (height, width) of a frame.

    Pixels are made square, then the frame is rotated.
    """
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if rotation_of(frame).transposed else (height, width)


def to_rgb(frame: av.VideoFrame, aspect: float, size: tuple[int, int] | None) -> np.ndarray:
    """Convert a frame to RGB as displayed.

    The result is (H, W, 3) uint8 in full range, without transparency.

    Args:
        frame: a frame in any pixel format.
        aspect: the width of a stored pixel over its height.
        size: displayed (height, width) to scale to; None means the frame's own.
    """
    rotation = rotation_of(frame)
    height, width = size or displayed_size(frame, aspect)
    if rotation.transposed:
        height, width = width, height
    shrinks = height <= frame.height and width <= frame.width
    scaled = frame.reformat(
        width=width, height=height, format="rgb24", interpolation=_SHRINK if shrinks else _GROW, threads=1
    )
    return rotation.apply(scaled.to_ndarray())


def from_rgb(pixels: np.ndarray) -> av.VideoFrame:
    """Convert RGB to an encoder's input.

    This is the inverse of ``to_rgb`` but for chroma subsampling.

    Args:
        pixels: uint8 of shape (H, W, 3), even H and W.

    Returns:
        A frame in yuv420p, limited range, color matrix BT.601, which ``to_rgb`` assumes for an untagged file.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", interpolation=_SHRINK, threads=1)


SEEK_MARGIN_S = 0.05  # aim a little early: AVI seeks go by decoding time, one frame off (measured on HMDB51)
BLIND_SEEK_S = 3.0  # ours: without an index of key frames, a seek over less than this seldom pays
SAME_TIME_S = 1e-6  # times closer than this are one time: far below a frame, far above rounding
NONREF_SKIP_MARGIN_FRAMES = 3  # ours: frames before a window that are always decoded
NONREF_SKIP_CODECS = ("h264", "hevc")  # tested for these; skipping saves a third of the time


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame with its time and its problems.

    Attributes:
        time_s: presentation time in seconds.
        frame: the decoded frame.
        corrupt: why the frame itself may be wrong; "" if it is right.
        dropped: why frames just before this one are missing; "" if none is.
    """

    time_s: float
    frame: av.VideoFrame
    corrupt: str = ""
    dropped: str = ""

    @property
    def problem(self) -> str:
        """Why this frame or those just before it cannot be used.

        It is "" if they can.
        """
        return self.dropped or self.corrupt


@dataclass(frozen=True)
class TruncatedEnd:
    """The marker at the end of a truncated stream.

    It takes the place of a frame; ``dropped`` is the reason.
    """

    dropped: str
    time_s: float = math.inf

    @property
    def problem(self) -> str:
        """The reason, as in ``TimedFrame.problem``."""
        return self.dropped


def timed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, nonref_skip: NonRefSkip | None = None
) -> Iterator[TimedFrame | TruncatedEnd]:
    """Yield the stream's frames from the container's position on.

    Their times never decrease. Frames before the first timestamp are left out. A later frame without a timestamp
    follows its predecessor by one nominal frame duration.
    """
    order: DisplayOrder[tuple[av.VideoFrame, str, str]] = DisplayOrder(container, stream)
    corrupt = dropped = ""
    latest: float | None = None
    emitted = -math.inf
    for frame, problem in decoded_frames(container, stream, nonref_skip, order.sent):
        if frame is None:
            corrupt = dropped = problem
            continue
        if frame.key_frame:
            corrupt = ""
        if frame.pts is not None:
            latest = frame.time
        elif latest is not None:
            latest += nominal_frame_s(stream)
        else:
            continue
        order.add(frame, latest, (frame, corrupt, dropped))
        dropped = ""
        for time_s, entry in order.ready():
            emitted = max(time_s, emitted)
            yield TimedFrame(emitted, *entry)
    for time_s, entry in order.rest():
        emitted = max(time_s, emitted)
        yield TimedFrame(emitted, *entry)
    if dropped:
        yield TruncatedEnd(dropped)


def nominal_frame_s(stream: av.VideoStream) -> float:
    """Return the header's frame duration, or 1/25 s without one."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate else 1 / 25  # ours


class FrameReader:
    """A reader of the frames nearest to ascending times.

    It seeks where that saves decoding.

    Args:
        container: an open file, at its start.
        stream: the video stream to read.
        path: the file's name, for messages.
        seeks: whether to seek. After a ``SeekError``, open the file again with ``seeks=False``.
        at_start: whether the container is at its start; if not, the reader seeks first.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        path: str | Path,
        *,
        seeks: bool,
        at_start: bool = True,
    ):
        self._container, self._stream, self._path = container, stream, path
        self._seeks = seeks and is_seekable(container)
        self._at_start = at_start
        self._is_reading = False
        self._feed: Iterator[TimedFrame | TruncatedEnd] = iter(())
        self._sought = False
        self._nonref_skip = NonRefSkip() if seeks and stream.codec_context.name in NONREF_SKIP_CODECS else None
        self._previous: TimedFrame | None = None
        self._next: TimedFrame | TruncatedEnd | None = None
        self._landing: TimedFrame | TruncatedEnd | None = None

    def move_to(self, time_s: float) -> None:
        """Prepare for a window that starts at a time.

        Later times are never before it.
        """
        if self._nonref_skip is not None:
            self._nonref_skip.until_s = time_s - NONREF_SKIP_MARGIN_FRAMES * nominal_frame_s(self._stream)
        must_seek = not self._is_reading and not self._at_start
        if must_seek and not self._seeks:
            raise SeekError("this kind of container is not sought in")
        sought = must_seek or (self._seeks and self._pays(time_s))
        if sought:
            seek(self._container, self._stream, max(time_s - SEEK_MARGIN_S, self._start_s()))
        if sought or not self._is_reading:
            self._is_reading = True
            self._sought, self._previous = sought, None
            self._feed = timed_frames(self._container, self._stream, self._nonref_skip)
            self._advance()
            self._landing = self._next if sought else None
            if sought and not (isinstance(self._next, TimedFrame) and self._next.frame.key_frame):
                raise SeekError("the seek did not land on a key frame")

    def nearest(self, time_s: float) -> TimedFrame:
        """Return the frame nearest to a time.

        Of two equally near it is the earlier. Before the first frame and after the last, that frame is returned.

        Raises:
            DecodeError: if the frame is corrupt or dropped, or the stream has none.
            SeekError: if the last seek landed too late.
        """
        while isinstance(self._next, TimedFrame) and self._next.time_s < time_s - SAME_TIME_S:
            self._previous = self._next
            self._advance()
        before, after = self._previous, self._next
        if before is None:
            if after is None:
                raise DecodeError.about(self._path, "no timestamps, or no frame decodes")
            if self._sought and after.time_s > max(time_s, self._start_s()) + SAME_TIME_S:
                raise SeekError(f"the seek landed at {after.time_s} s, after {time_s} s")
            if isinstance(after, TruncatedEnd):
                raise self._damage(time_s, after.dropped)
            chosen = after  # before the first frame, that one is repeated
        elif self._is_hole(before, after):
            raise SeekError("frames are missing behind the key frame")
        elif isinstance(after, TimedFrame) and time_s - before.time_s > after.time_s - time_s + SAME_TIME_S:
            chosen = after
        else:
            chosen = before
        if self._nonref_skip is not None and before is not None and before.time_s < self._nonref_skip.until_s:
            raise SeekError("a frame just before the window may have been skipped")
        problem = chosen.corrupt or self._dropped_at(time_s)
        if problem:
            raise self._damage(time_s, problem)
        return chosen

    def _damage(self, time_s: float, problem: str) -> SeekError | DecodeError:
        """Return the error for a corrupt frame.

        After a seek it may be due to the seek.
        """
        if self._sought:
            return SeekError(problem)  # decoding from the start decides
        return DecodeError.about(self._path, f"does not decode at {time_s:.3f} s: {problem}")

    def _is_hole(self, before: TimedFrame, after: TimedFrame | TruncatedEnd | None) -> bool:
        """Return whether frames are missing just behind the key frame of a seek.

        Where times are those of decoding, these are B-frames shown before the key frame, whose own time is then wrong.
        """
        if before is not self._landing or not self._stream.codec_context.reorder_depth:
            return False
        return after is None or after.time_s - before.time_s > 1.5 * nominal_frame_s(self._stream)

    def _dropped_at(self, time_s: float) -> str:
        """Return why frames are missing at a time, "" if none is.

        The last frame of a truncated stream is valid for one and a half frame durations.
        """
        before, after = self._previous, self._next
        if after is None or not after.dropped:
            return ""
        if before is None:
            return after.dropped if time_s < after.time_s - SAME_TIME_S else ""
        lasts_s = 1.5 * nominal_frame_s(self._stream) if isinstance(after, TruncatedEnd) else SAME_TIME_S
        return after.dropped if before.time_s + lasts_s < time_s < after.time_s - SAME_TIME_S else ""

    def _advance(self) -> None:
        self._next = next(self._feed, None)
        if self._sought and isinstance(self._next, TimedFrame) and self._next.frame.is_corrupt:
            raise SeekError("frames are corrupt after the seek")

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel."""
        return pixel_aspect(self._stream)

    def _start_s(self) -> float:
        return float((self._stream.start_time or 0) * tick_of(self._stream))

    def _pays(self, time_s: float) -> bool:
        """Return whether a key frame lies between the position and a time.

        Without an index of key frames, the distance decides.
        """
        position_s = self._start_s() if not self._is_reading else self._next.time_s if self._next else math.inf
        index = self._stream.index_entries
        if len(index) == 0:
            return time_s - position_s > BLIND_SEEK_S
        entry = index.search_timestamp(math.floor((time_s - SEEK_MARGIN_S) / tick_of(self._stream)))
        return entry >= 0 and float(index[entry].timestamp * tick_of(self._stream)) > position_s + SEEK_MARGIN_S
