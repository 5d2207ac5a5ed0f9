"""Open a media file, choose its streams and decode their frames, including those of irregular files.

- FFmpeg lists a cover picture as a video stream; it is ignored here. Of several streams, those that the file marks as
  default come first, as in players; the first that decodes is used.
- A seek may land late (MPEG program streams, some AVI), find nothing (transport streams) or give corrupt frames.
  Containers known for it are never sought in. Elsewhere the caller of ``seek`` checks the result and raises
  ``SeekError``; the file is then opened again and decoded from the start.
- A packet that does not decode is skipped and reported; ``video.py`` and ``audio.py`` mark the frames it affects. Bytes
  behind the last frame are no damage (``trailing.py``).
- Where the file's clock starts again, as in joined transport streams, the stream ends with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import av
from av.stream import Discard, Disposition

from crisscross.data.media.trailing import Tail

# Containers in which frames keep their times after a seek. In MPEG program streams they move by a frame, silently, and
# in transport streams a seek finds nothing; these and rare ones are decoded from the start: slower and always right.
SEEKABLE_FORMATS = ("mov", "matroska", "avi")
RESTART_S = 0.5  # ours: timestamps that go back further from packet to packet are those of another clock
DISCONTINUITY_S = 10.0  # the same forward, where FFmpeg says that clocks may change: its own limit for a discontinuity
TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT
Kind = Literal["video", "audio"]
AnyStream = TypeVar("AnyStream", bound=av.stream.Stream)
PacketCallback = Callable[["av.Packet[AnyStream]"], None]
_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


class DecodeError(RuntimeError):
    """Error of a file that cannot be decoded as requested.

    The message is one line: the file, then the reason.
    """

    reason: str = ""

    @classmethod
    def about(cls, path: str | Path, reason: str) -> DecodeError:
        """Return the error for a file.

        Its attribute ``reason`` holds the reason alone.
        """
        error = cls(f"{path}: {reason}")
        error.reason = reason
        return error


class SeekError(Exception):
    """A seek landed too late, nowhere, or on corrupt data.

    Decode from the start instead.
    """


@contextmanager
def open_media(path: str | Path) -> Iterator[av.container.InputContainer]:
    """Open a media file for reading, without network access.

    The path is made absolute, so FFmpeg does not take ``-v.mp4`` for an option or ``http:x.mp4`` for an address.

    Raises:
        DecodeError: if the file is missing, empty, or FFmpeg cannot open it.
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
    """Return an FFmpeg error as a short line without the file name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def candidate_streams(container: av.container.InputContainer, kind: Kind) -> list[av.VideoStream | av.AudioStream]:
    """Return the streams of a kind without cover pictures and unknown codecs.

    Those that the file marks as default come first, as in players.
    """
    streams: Sequence[av.VideoStream | av.AudioStream]
    streams = container.streams.video if kind == "video" else container.streams.audio
    usable = [s for s in streams if s.codec_context is not None and not s.disposition & _NOT_VIDEO]
    return sorted(usable, key=lambda stream: not stream.disposition & Disposition.default)


@overload
def choose_stream(
    container: av.container.InputContainer, path: str | Path, kind: Literal["video"]
) -> av.VideoStream | None: ...


@overload
def choose_stream(
    container: av.container.InputContainer, path: str | Path, kind: Literal["audio"]
) -> av.AudioStream | None: ...


def choose_stream(
    container: av.container.InputContainer, path: str | Path, kind: Kind
) -> av.VideoStream | av.AudioStream | None:
    """Return the first stream that gives a frame with a timestamp.

    Return None if there is no stream.

    A single candidate is returned without a test. Of several, each is tried on a second opening of the file, so that
    ``container`` stays at its start.
    """
    candidates = candidate_streams(container, kind)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    for index, candidate in enumerate(candidates):
        with open_media(path) as second:
            frames = decoded_frames(second, candidate_streams(second, kind)[index])
            if any(frame is not None and frame.pts is not None for frame, _ in frames):
                return candidate
    return candidates[0]


@dataclass
class NonRefSkip:
    """The time in seconds before which the decoder may skip non-reference frames."""

    until_s: float = -math.inf


class _Clock:
    """The decoding times of a stream, which only grow unless the file joins parts with clocks of their own.

    Without video to align with, parts of audio are played one after the other (``audio_seek.Timeline``), as in players.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream) -> None:
        self._tick_s = float(tick_of(stream))
        self._back_ticks = -RESTART_S / self._tick_s
        self._is_checked = stream.type == "video" or bool(candidate_streams(container, "video"))
        forward_s = DISCONTINUITY_S if container.format.flags & TS_DISCONT else math.inf
        self._forward_ticks = forward_s / self._tick_s
        self._last: int | None = None
        self.problem = ""

    def breaks(self, packet: av.Packet[Any]) -> bool:
        """Return whether the clock changes at a packet, and set ``problem``."""
        now, last = packet.dts, self._last
        if now is None or not self._is_checked:
            return False
        if last is not None and not self._back_ticks <= now - last <= self._forward_ticks:
            self.problem = f"the file's clock jumps from {last * self._tick_s:.2f} to {now * self._tick_s:.2f} s"
            return True
        self._last = now
        return False


@overload
def decoded_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    nonref_skip: NonRefSkip | None = None,
    on_packet: PacketCallback[av.VideoStream] | None = None,
) -> Iterator[tuple[av.VideoFrame | None, str]]: ...


@overload
def decoded_frames(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    nonref_skip: NonRefSkip | None = None,
    on_packet: PacketCallback[av.AudioStream] | None = None,
) -> Iterator[tuple[av.AudioFrame | None, str]]: ...


def decoded_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    nonref_skip: NonRefSkip | None = None,
    on_packet: PacketCallback[Any] | None = None,
) -> Iterator[tuple[av.VideoFrame | av.AudioFrame | None, str]]:
    """Yield each frame of a stream in decode order.

    Args:
        container: an open file.
        stream: one of its streams.
        nonref_skip: frames that the decoder may skip.
        on_packet: called with each packet before it is decoded.

    Yields:
        ``(frame, "")`` for each frame, and ``(None, reason)`` if a packet fails.
    """
    for other in container.streams:  # the demuxer then skips the packets of other streams
        other.discard = Discard.default if other.index == stream.index else Discard.all
    packets, clock, tail = container.demux(stream), _Clock(container, stream), Tail(container)
    skipping = None  # unknown: another pass may have left the decoder skipping
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the rest of the file cannot be read
            if tail.passes_over(error, describe(error)):
                packets = container.demux(stream)
                continue
            if not tail.may_end():
                yield None, describe(error)
            return
        if packet is None:
            return
        if tail.held:
            tail.packet_read(packet)
        if clock.breaks(packet):
            yield None, clock.problem
            return
        if nonref_skip is not None:
            skips = packet.pts is not None and packet.pts * packet.time_base < nonref_skip.until_s
            if skips != skipping:
                stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
                skipping = skips
        if on_packet is not None:
            on_packet(packet)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            if not tail.holds(packet, describe(error)):
                yield None, describe(error)
            continue
        for frame in frames:
            tail.has_frames = True
            if tail.held and (problem := tail.report()):
                yield None, problem
            yield frame, ""


def tick_of(stream: av.stream.Stream) -> Fraction:
    """Return the time base of a stream in seconds."""
    tick = stream.time_base
    assert tick is not None  # FFmpeg sets it for every stream that it opens
    return tick


def is_seekable(container: av.container.InputContainer) -> bool:
    """Return whether checked seeks work in this kind of container."""
    return container.format.name.split(",")[0] in SEEKABLE_FORMATS


def seek(container: av.container.InputContainer, stream: av.stream.Stream, time_s: float) -> None:
    """Seek to the key frame at or before a time.

    The caller checks where the seek landed.
    """
    try:
        container.seek(math.floor(time_s / tick_of(stream)), stream=stream)
    except av.FFmpegError as error:
        raise SeekError(describe(error)) from error
