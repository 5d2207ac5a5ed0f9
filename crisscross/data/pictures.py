"""Read a file's pictures in order, each with a time that can be trusted, and give those nearest to wanted times.

- A time is a presentation time in seconds on the file's own timeline; it need not start at 0.
- Pictures come out of the decoder in the right order, but some AVI files carry their timestamps shuffled. So the order
  is kept and the times are sorted: the k-th picture gets the k-th smallest time.
- A packet that does not decode spoils the pictures after it until the next key frame, and leaves a gap. Whoever asks
  for such a picture gets a ``DecodeError``; the pictures elsewhere are served.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from crisscross.data.geometry import pixel_aspect
from crisscross.data.streams import DecodeError, SeekError, Skim, decoded_frames, is_seekable, seek, tick_of

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
    container: av.container.InputContainer, stream: av.VideoStream, skim: Skim | None = None
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
        self._skim = Skim() if seeks and stream.codec_context.name in SKIMMED_CODECS else None
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
