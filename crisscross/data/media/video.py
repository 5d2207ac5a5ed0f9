"""How a decoded frame is to be shown: turned or mirrored, and with pixels that need not be square."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation

from crisscross.data.media.streams import DecodeError, NonRefSkip, SeekError, decoded_frames, is_seekable, seek, tick_of

# Averaging is the cheapest filter that does not alias, bicubic serves where a side grows. The flags make the result
# the same on every processor, and cost nothing measurable.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_SHRINK, _GROW = Interpolation.AREA | _EXACT, Interpolation.BICUBIC | _EXACT
MAX_PIXEL_ASPECT = 10.0  # a header that claims more is taken to be wrong (chosen by us)


@dataclass(frozen=True)
class Rotation:
    """A rotation by a multiple of 90 degrees, with or without mirroring, in the order of the attributes."""

    transposed: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return an array of shape (H, W, C) turned; a view."""
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return pixels[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


def turn_of(frame: av.VideoFrame) -> Rotation:
    """Return how the container wants a frame turned, so that people stand upright; odd angles to the nearest 90."""
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # typed as a dict of other keys
    if side_data is None:
        return Rotation()
    # x' = a x + c y and y' = b x + d y, in 16.16 fixed point, rows (a b u) (c d v) (tx ty w)
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Rotation(transposed=True, flip_horizontal=c < 0, flip_vertical=b < 0)
    return Rotation(flip_horizontal=a < 0, flip_vertical=d < 0)


def pixel_aspect(stream: av.video.VideoStream) -> float:
    """Return the width of a stored pixel over its height; 1 where the file does not say or says nonsense."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT else 1.0


def displayed_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """Return (height, width) of a frame as displayed: wide pixels widen it, then it is turned."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if turn_of(frame).transposed else (height, width)


def to_rgb(frame: av.VideoFrame, aspect: float, size: tuple[int, int] | None) -> np.ndarray:
    """Return a frame as a player shows it: uint8 of shape (H, W, 3), full range, transparency dropped.

    Args:
        frame: a frame in any pixel format.
        aspect: the width of a stored pixel over its height.
        size: (height, width) to scale to, as displayed; None for the displayed size.
    """
    turn = turn_of(frame)
    height, width = size or displayed_size(frame, aspect)
    if turn.transposed:
        height, width = width, height
    shrinks = height <= frame.height and width <= frame.width
    scaled = frame.reformat(
        width=width, height=height, format="rgb24", interpolation=_SHRINK if shrinks else _GROW, threads=1
    )
    return turn.apply(scaled.to_ndarray())


def from_rgb(pixels: np.ndarray) -> av.VideoFrame:
    """Return pixels as an encoder takes them: the reverse of ``to_rgb`` but for the halved colour resolution.

    Args:
        pixels: uint8 of shape (H, W, 3), even H and W.

    Returns:
        A frame in yuv420p: limited range, the colour matrix of BT.601, which ``to_rgb`` takes an unmarked file to have.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", interpolation=_SHRINK, threads=1)


# How far a timestamp may lie from its place. AVI keeps none, so that FFmpeg guesses: off by 1 in 35 of 174 UCF101 and
# HMDB51 files (MPEG-4), by 3 with H.264 inside. Other containers keep them; 2 is for copies made from such files.
AVI_REORDER_DEPTH, REORDER_DEPTH = 4, 2
SEEK_MARGIN_S = 0.05  # aim a little early: AVI seeks go by decoding time, one frame off (measured on HMDB51)
BLIND_SEEK_S = 3.0  # without an index of key frames, a seek over less than this seldom pays (chosen by us)
SAME_TIME_S = 1e-6  # times closer than this are one time: far below a frame, far above rounding
SKIM_MARGIN_FRAMES = 3  # pictures before a window that are decoded whatever they are (chosen by us)
SKIMMED_CODECS = ("h264", "hevc")  # where leaving out unreferenced pictures was tested, and saves a third


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what is known of it.

    Attributes:
        time_s: presentation time in seconds.
        frame: the decoded frame.
        spoilt: why the picture itself may be wrong ("" when it is sound).
        lost: why pictures just before this one are missing ("" when none is).
    """

    time_s: float
    frame: av.VideoFrame
    spoilt: str = ""
    lost: str = ""

    @property
    def problem(self) -> str:
        """Why the picture or those just before it cannot be used; "" when all is well."""
        return self.lost or self.spoilt


@dataclass(frozen=True)
class BreakOff:
    """The mark, in the place of a picture, at the end of a stream that breaks off; ``lost`` says why."""

    lost: str
    time_s: float = math.inf

    @property
    def problem(self) -> str:
        """The same, as a picture tells it."""
        return self.lost


def pictures(
    container: av.container.InputContainer, stream: av.VideoStream, skim: NonRefSkip | None = None
) -> Iterator[Picture | BreakOff]:
    """Yield the stream's pictures from where the container stands, with times that never go backwards.

    Pictures before the first timestamp are dropped: they have no place in time. A picture without one among
    others is taken to follow its predecessor by one nominal frame.
    """
    times: list[float] = []
    waiting: deque[tuple[av.VideoFrame, str, str]] = deque()
    spoilt = lost = ""
    latest: float | None = None
    emitted = -math.inf
    depth = AVI_REORDER_DEPTH if container.format.name == "avi" else REORDER_DEPTH
    for frame, problem in decoded_frames(container, stream, skim):
        if frame is None:
            spoilt = lost = problem
            continue
        if frame.key_frame:
            spoilt = ""
        if frame.pts is not None:
            latest = frame.time
        elif latest is not None:
            latest += nominal_frame_s(stream)
        else:
            continue
        heapq.heappush(times, latest)
        waiting.append((frame, spoilt, lost))
        lost = ""
        if len(waiting) > depth:
            emitted = max(heapq.heappop(times), emitted)
            yield Picture(emitted, *waiting.popleft())
    for entry in waiting:
        emitted = max(heapq.heappop(times), emitted)
        yield Picture(emitted, *entry)
    if lost:
        yield BreakOff(lost)


def nominal_frame_s(stream: av.VideoStream) -> float:
    """Return how long a frame lasts by the header, 1/25 s where it does not say (chosen by us)."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate else 1 / 25


class PictureReader:
    """Gives the picture nearest to each of a rising sequence of times, decoding forward and seeking where it pays.

    Args:
        container: an open file, at its start.
        stream: the video stream to read.
        path: the file's name, for messages.
        seeks: whether it may seek. ``SeekError`` says that it must not: open the file anew with ``seeks=False``.
        at_start: whether the container still stands at its start; if not, the first thing done is a seek.
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
        self._feed: Iterator[Picture | BreakOff] = iter(())
        self._sought = False
        self._skim = NonRefSkip() if seeks and stream.codec_context.name in SKIMMED_CODECS else None
        self._previous: Picture | None = None
        self._next: Picture | BreakOff | None = None

    def move_to(self, time_s: float) -> None:
        """Get ready for a run of times that begins here; times already passed are not asked again."""
        if self._skim is not None:
            self._skim.until_s = time_s - SKIM_MARGIN_FRAMES * nominal_frame_s(self._stream)
        must_seek = not self._is_reading and not self._at_start
        if must_seek and not self._seeks:
            raise SeekError("this kind of container is not sought in")
        sought = must_seek or (self._seeks and self._pays(time_s))
        if sought:
            seek(self._container, self._stream, max(time_s - SEEK_MARGIN_S, self._start_s()))
        if sought or not self._is_reading:
            self._is_reading = True
            self._sought, self._previous = sought, None
            self._feed = pictures(self._container, self._stream, self._skim)
            self._advance()
            if sought and not (isinstance(self._next, Picture) and self._next.frame.key_frame):
                raise SeekError("the seek did not land on a key frame")

    def nearest(self, time_s: float) -> Picture:
        """Return the picture nearest to a time: the earlier of two equally near, the first or last beyond the ends.

        Raises:
            DecodeError: the picture there is damaged or lost, or the stream has none.
            SeekError: the seek before landed too late.
        """
        while isinstance(self._next, Picture) and self._next.time_s < time_s - SAME_TIME_S:
            self._previous = self._next
            self._advance()
        before, after = self._previous, self._next
        if before is None:
            if after is None:
                raise DecodeError.about(self._path, "no timestamps, or no frame decodes")
            if self._sought and after.time_s > max(time_s, self._start_s()) + SAME_TIME_S:
                raise SeekError(f"the seek landed at {after.time_s} s, after {time_s} s")
            if isinstance(after, BreakOff):
                raise self._damage(time_s, after.lost)
            chosen = after  # asked before the first picture: that one is repeated
        elif isinstance(after, Picture) and time_s - before.time_s > after.time_s - time_s + SAME_TIME_S:
            chosen = after
        else:
            chosen = before
        if self._skim is not None and before is not None and before.time_s < self._skim.until_s:
            raise SeekError("a picture just before the window may have been left out")
        problem = chosen.spoilt or self._lost_at(time_s)
        if problem:
            raise self._damage(time_s, problem)
        return chosen

    def _damage(self, time_s: float, problem: str) -> SeekError | DecodeError:
        """Return the error for a picture that cannot be had; after a seek, perhaps by the seek's fault."""
        if self._sought:
            return SeekError(problem)  # decoding from the start decides
        return DecodeError.about(self._path, f"does not decode at {time_s:.3f} s: {problem}")

    def _lost_at(self, time_s: float) -> str:
        """Return why pictures are missing at a time, "" when none is.

        A stream that breaks off keeps its last picture for one and a half frames: the clip ends there.
        """
        before, after = self._previous, self._next
        if after is None or not after.lost:
            return ""
        if before is None:
            return after.lost if time_s < after.time_s - SAME_TIME_S else ""
        lasts_s = 1.5 * nominal_frame_s(self._stream) if isinstance(after, BreakOff) else SAME_TIME_S
        return after.lost if before.time_s + lasts_s < time_s < after.time_s - SAME_TIME_S else ""

    def _advance(self) -> None:
        self._next = next(self._feed, None)
        if self._sought and isinstance(self._next, Picture) and self._next.frame.is_corrupt:
            raise SeekError("pictures are damaged after the seek")

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel."""
        return pixel_aspect(self._stream)

    def _start_s(self) -> float:
        return float((self._stream.start_time or 0) * tick_of(self._stream))

    def _pays(self, time_s: float) -> bool:
        """Whether a key frame lies between here and there; by distance where the container keeps no index."""
        position_s = self._start_s() if not self._is_reading else self._next.time_s if self._next else math.inf
        index = self._stream.index_entries
        if len(index) == 0:
            return time_s - position_s > BLIND_SEEK_S
        entry = index.search_timestamp(math.floor((time_s - SEEK_MARGIN_S) / tick_of(self._stream)))
        return entry >= 0 and float(index[entry].timestamp * tick_of(self._stream)) > position_s + SEEK_MARGIN_S
