"""Open a media file, choose its streams and decode their frames, surviving what real files do.

- A cover picture is a video stream to FFmpeg and not to us. Of several real streams the first that decodes is taken.
- A seek may land late (MPEG program streams, some AVI), find nothing (transport streams) or give damaged pictures.
  Where containers are known for it there is none; elsewhere it is checked by whoever asked for it, and ``SeekError``
  tells the caller to open the file anew and decode from the start.
- A packet that does not decode is skipped and reported, for ``video.py`` and ``audio.py`` to mark what it spoils.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, overload

import av
from av.stream import Discard, Disposition

# Containers in which pictures keep their times after a seek. In MPEG program streams they move by a frame, silently,
# and transport streams find nothing; these and the rare ones are decoded from the start: slower and always right.
SEEKABLE_FORMATS = ("mov", "matroska", "avi")
Kind = Literal["video", "audio"]
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


def candidate_streams(container: av.container.InputContainer, kind: Kind) -> list[av.VideoStream | av.AudioStream]:
    """Return the real streams of a kind: cover pictures and unknown codecs left out."""
    streams: Sequence[av.VideoStream | av.AudioStream]
    streams = container.streams.video if kind == "video" else container.streams.audio
    return [s for s in streams if s.codec_context is not None and not s.disposition & _NOT_VIDEO]


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
    """Return the stream to use: the first real one that gives a frame with a timestamp; None when there is none.

    With one candidate it is returned unseen. With several, each is tried on a second opening of the file, so that
    ``container`` stays at its start.
    """
    candidates = candidate_streams(container, kind)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    for place, candidate in enumerate(candidates):
        with open_media(path) as second:
            frames = decoded_frames(second, candidate_streams(second, kind)[place])
            if any(frame is not None and frame.pts is not None for frame, _ in frames):
                return candidate
    return candidates[0]


@dataclass
class NonRefSkip:
    """Up to which time, in seconds, pictures that no other picture refers to may be left undecoded."""

    until_s: float = -math.inf


@overload
def decoded_frames(
    container: av.container.InputContainer, stream: av.VideoStream, skim: NonRefSkip | None = None
) -> Iterator[tuple[av.VideoFrame | None, str]]: ...


@overload
def decoded_frames(
    container: av.container.InputContainer, stream: av.AudioStream, skim: NonRefSkip | None = None
) -> Iterator[tuple[av.AudioFrame | None, str]]: ...


def decoded_frames(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, skim: NonRefSkip | None = None
) -> Iterator[tuple[av.VideoFrame | av.AudioFrame | None, str]]:
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
            skims = packet.pts is not None and packet.pts * packet.time_base < skim.until_s
            if skims != skimming:
                stream.codec_context.skip_frame = "NONREF" if skims else "DEFAULT"
                skimming = skims
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            yield None, describe(error)
            continue
        for frame in frames:
            yield frame, ""


def tick_of(stream: av.stream.Stream) -> Fraction:
    """Return how many seconds a tick of a stream's clock lasts."""
    tick = stream.time_base
    assert tick is not None  # FFmpeg gives every stream that it opens a clock
    return tick


def is_seekable(container: av.container.InputContainer) -> bool:
    """Return whether seeks in this kind of container can be trusted, if checked."""
    return container.format.name.split(",")[0] in SEEKABLE_FORMATS


def seek(container: av.container.InputContainer, stream: av.stream.Stream, time_s: float) -> None:
    """Seek to the key frame at or before a time. Where it lands is for the caller to check."""
    try:
        container.seek(math.floor(time_s / tick_of(stream)), stream=stream)
    except av.FFmpegError as error:
        raise SeekError(describe(error)) from error
