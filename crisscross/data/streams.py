"""Open a media file, choose its streams, and read its pictures in order, each with a time that can be trusted.

What real files do, and what is done about it here:

- A time is a presentation time in seconds on the file's own timeline; it need not start at 0.
- Pictures come out of the decoder in the right order, but some AVI files carry their timestamps shuffled. So
  the order is kept and the times are sorted: the k-th picture gets the k-th smallest time.
- A seek may land late (MPEG program streams, some AVI), find nothing (transport streams) or give damaged pictures.
  Where containers are known for it there is none; elsewhere it is checked, and ``SeekError`` tells the caller to open
  the file anew and decode from the start.
- A packet that does not decode is skipped, but what it spoils is marked: the pictures after it until the next
  key frame, and the gap that it leaves. Whoever asks for such a picture gets a ``DecodeError``.
- A cover picture is a video stream to FFmpeg and not to us. Of several real streams the first that decodes is taken.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Discard, Disposition

from crisscross.data.geometry import pixel_aspect

# How far a timestamp may lie from its place. AVI keeps none, so that FFmpeg guesses: off by 1 in 35 of 174 UCF101 and
# HMDB51 files (MPEG-4), by 3 with H.264 inside. Other containers keep them; 2 is for copies made from such files.
AVI_REORDER_DEPTH, REORDER_DEPTH = 4, 2
# Containers in which pictures keep their times after a seek. In MPEG program streams they move by a frame, silently,
# and transport streams find nothing; these and the rare ones are decoded from the start: slower and always right.
SEEKABLE_FORMATS = ("mov", "matroska", "avi")
SEEK_MARGIN_S = 0.05  # aim a little early: AVI seeks go by decoding time, one frame off (measured on HMDB51)
BLIND_SEEK_S = 3.0  # without an index of key frames, a seek over less than this seldom pays (chosen by us)
SAME_TIME_S = 1e-6  # times closer than this are one time: far below a frame, far above rounding

SKIM_MARGIN_FRAMES = 3  # pictures before a window that are decoded whatever they are (chosen by us)
SKIMMED_CODECS = ("h264", "hevc")  # where leaving out unreferenced pictures was tested, and saves a third

_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


class DecodeError(RuntimeError):
    """A file does not give what was asked of it. The message is one line: the file, then the reason."""

    reason: str = ""

    @classmethod
    def about(cls, path: str | Path, reason: str) -> DecodeError:
        """Return the error for a file; ``reason`` alone is kept in ``.reason``."""
        error = cls(f"{path}: {reason}")
        error.reason = reason
        return error


class SeekError(Exception):
    """A short cut failed: a seek landed too late, nowhere, or on damage. Decode all from the start instead."""


@contextmanager
def open_media(path: str | Path) -> Iterator[av.container.InputContainer]:
    """Open a media file for reading, without ever touching the network.

    The path is made absolute, so that a name such as ``-v.mp4`` or ``http:x.mp4`` is a name and nothing else.

    Raises:
        DecodeError: the file is missing, empty, or nothing that FFmpeg can open.
    """
    full_path = Path(path).absolute()
    if not full_path.is_file():
        raise DecodeError.about(path, "file missing")
    if full_path.stat().st_size == 0:
        raise DecodeError.about(path, "empty file (0 bytes)")
    try:
        container = av.open(str(full_path), metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, UnicodeError) as error:
        raise DecodeError.about(path, f"cannot open: {describe(error)}") from error
    with container:
        for stream in container.streams:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = 1  # loader workers are the parallelism
        yield container


def describe(error: Exception) -> str:
    """Return what went wrong in FFmpeg as a short line without the file name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def candidate_streams(container: av.container.InputContainer, kind: str) -> list[av.stream.Stream]:
    """Return the real streams of a kind, ``"video"`` or ``"audio"``: cover pictures and unknown codecs left out."""
    streams = container.streams.video if kind == "video" else container.streams.audio
    return [s for s in streams if s.codec_context is not None and not s.disposition & _NOT_VIDEO]


def choose_stream(container: av.container.InputContainer, path: str | Path, kind: str) -> av.stream.Stream | None:
    """Return the stream to use: the first real one that gives a frame with a timestamp; None when there is none.

    With one candidate it is returned unseen. With several, each is tried on a second opening of the file, so that
    ``container`` stays at its start.
    """
    candidates = candidate_streams(container, kind)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    for candidate in candidates:
        with open_media(path) as second:
            frames = decoded_frames(second, second.streams[candidate.index])
            if any(frame is not None and frame.pts is not None for frame, _ in frames):
                return candidate
    return candidates[0]


@dataclass
class Skim:
    """Up to which time, in seconds, pictures that no other picture refers to may be left undecoded."""

    until_s: float = -math.inf


def decoded_frames(
    container: av.container.InputContainer, stream: av.stream.Stream, skim: Skim | None = None
) -> Iterator[tuple[av.frame.Frame | None, str]]:
    """Yield each frame in decode order as ``(frame, "")``, and ``(None, reason)`` where one is lost."""
    for other in container.streams:  # the demuxer need not even read what nobody decodes
        other.discard = Discard.default if other.index == stream.index else Discard.all
    packets = container.demux(stream)
    skimming = None  # what the decoder does now is not known: another pass may have left it skimming
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the rest of the file cannot be read
            yield None, describe(error)
            return
        if packet is None:
            return
        if skim is not None:
            skims = packet.pts is not None and packet.pts * stream.time_base < skim.until_s
            if skims != skimming:
                stream.codec_context.skip_frame = "NONREF" if skims else "DEFAULT"
                skimming = skims
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            yield None, describe(error)
            continue
        for frame in frames:
            yield frame, ""


def is_seekable(container: av.container.InputContainer) -> bool:
    """Return whether seeks in this kind of container can be trusted, if checked."""
    return container.format.name.split(",")[0] in SEEKABLE_FORMATS


def seek(container: av.container.InputContainer, stream: av.stream.Stream, time_s: float) -> None:
    """Seek to the key frame at or before a time. Where it lands is for the caller to check."""
    try:
        container.seek(math.floor(time_s / stream.time_base), stream=stream)
    except av.FFmpegError as error:
        raise SeekError(describe(error)) from error


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what is known of it.

    Attributes:
        time_s: presentation time in seconds; ``math.inf`` for the mark at the end of a stream that breaks off.
        frame: the decoded frame; None for that mark.
        spoilt: why the picture itself may be wrong ("" when it is sound).
        lost: why pictures just before this one are missing ("" when none is).
    """

    time_s: float
    frame: av.VideoFrame | None
    spoilt: str = ""
    lost: str = ""


def pictures(
    container: av.container.InputContainer, stream: av.video.VideoStream, skim: Skim | None = None
) -> Iterator[Picture]:
    """Yield the stream's pictures from where the container stands, with times that never go backwards.

    Pictures before the first timestamp are dropped: they have no place in time. A picture without one among
    others is taken to follow its predecessor by one nominal frame.
    """
    times: list[float] = []
    waiting: deque[tuple[av.VideoFrame, str, str]] = deque()
    spoilt = lost = ""
    latest, emitted = None, -math.inf
    depth = AVI_REORDER_DEPTH if container.format.name == "avi" else REORDER_DEPTH
    for frame, problem in decoded_frames(container, stream, skim):
        if frame is None:
            spoilt = lost = problem
            continue
        if frame.key_frame:
            spoilt = ""
        if frame.pts is None and latest is None:
            continue
        latest = frame.time if frame.pts is not None else latest + nominal_frame_s(stream)
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
        yield Picture(math.inf, None, lost=lost)


def nominal_frame_s(stream: av.video.VideoStream) -> float:
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
        stream: av.video.VideoStream,
        path: str | Path,
        *,
        seeks: bool,
        at_start: bool = True,
    ):
        self._container, self._stream, self._path = container, stream, path
        self._seeks = seeks and is_seekable(container)
        self._at_start = at_start
        self._feed: Iterator[Picture] | None = None
        self._sought = False
        self._skim = Skim() if seeks and stream.codec_context.name in SKIMMED_CODECS else None
        self._previous: Picture | None = None
        self._next: Picture | None = None

    def move_to(self, time_s: float) -> None:
        """Get ready for a run of times that begins here; times already passed are not asked again."""
        if self._skim is not None:
            self._skim.until_s = time_s - SKIM_MARGIN_FRAMES * nominal_frame_s(self._stream)
        must_seek = self._feed is None and not self._at_start
        if must_seek and not self._seeks:
            raise SeekError("this kind of container is not sought in")
        sought = must_seek or (self._seeks and self._pays(time_s))
        if sought:
            seek(self._container, self._stream, max(time_s - SEEK_MARGIN_S, self._start_s()))
        if sought or self._feed is None:
            self._sought, self._previous = sought, None
            self._feed = pictures(self._container, self._stream, self._skim)
            self._advance()
            if sought and (self._next is None or self._next.frame is None or not self._next.frame.key_frame):
                raise SeekError("the seek did not land on a key frame")

    def nearest(self, time_s: float) -> Picture:
        """Return the picture nearest to a time: the earlier of two equally near, the first or last beyond the ends.

        Raises:
            DecodeError: the picture there is damaged or lost, or the stream has none.
            SeekError: the seek before landed too late.
        """
        while self._next is not None and self._next.time_s < time_s - SAME_TIME_S:
            self._previous = self._next
            self._advance()
        before, after = self._previous, self._next
        if before is None and after is None:
            raise DecodeError.about(self._path, "no timestamps, or no frame decodes")
        if before is None:
            if self._sought and after.time_s > max(time_s, self._start_s()) + SAME_TIME_S:
                raise SeekError(f"the seek landed at {after.time_s} s, after {time_s} s")
            chosen = after  # asked before the first picture: that one is repeated
        elif after is None:
            chosen = before
        else:
            chosen = before if time_s - before.time_s <= after.time_s - time_s + SAME_TIME_S else after
        if self._skim is not None and before is not None and before.time_s < self._skim.until_s:
            raise SeekError("a picture just before the window may have been left out")
        problem = chosen.spoilt or self._lost_at(time_s)
        if problem and self._sought:
            raise SeekError(problem)  # perhaps the seek's fault: decoding from the start decides
        if problem:
            raise DecodeError.about(self._path, f"does not decode at {time_s:.3f} s: {problem}")
        return chosen

    def _lost_at(self, time_s: float) -> str:
        """Return why pictures are missing at a time, "" when none is.

        A stream that breaks off keeps its last picture for one and a half frames: the clip ends there.
        """
        before, after = self._previous, self._next
        if after is None or not after.lost:
            return ""
        if before is None:
            return after.lost if after.frame is None or time_s < after.time_s - SAME_TIME_S else ""
        lasts_s = 1.5 * nominal_frame_s(self._stream) if after.frame is None else SAME_TIME_S
        return after.lost if before.time_s + lasts_s < time_s < after.time_s - SAME_TIME_S else ""

    def _advance(self) -> None:
        self._next = next(self._feed, None)
        if self._sought and self._next is not None and self._next.frame is not None and self._next.frame.is_corrupt:
            raise SeekError("pictures are damaged after the seek")

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel."""
        return pixel_aspect(self._stream)

    def _start_s(self) -> float:
        return float((self._stream.start_time or 0) * self._stream.time_base)

    def _pays(self, time_s: float) -> bool:
        """Whether a key frame lies between here and there; by distance where the container keeps no index."""
        position_s = self._start_s() if self._feed is None else self._next.time_s if self._next else math.inf
        index = self._stream.index_entries
        if len(index) == 0:
            return time_s - position_s > BLIND_SEEK_S
        entry = index.search_timestamp(math.floor((time_s - SEEK_MARGIN_S) / self._stream.time_base))
        return entry >= 0 and float(index[entry].timestamp * self._stream.time_base) > position_s + SEEK_MARGIN_S
