"""Bytes behind the last frame of a file: zeros, tags, a page of HTML. Players pass over them.

Files without a container are frames one after the other. What follows the last one is given to the decoder, which
fails. It is no damage if nothing decodes after it and it does not begin as frames do. The first such packet may begin
so: it is the last frame with the bytes behind it, or a part of a frame, as at the end of a file that was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av

MAX_FAILED = 100  # ours: failed readings in a row, of 64 KiB each
MPEG_SYNC, BAD_BITRATE, BAD_RATE, LAYER = 0xE0, 0xF0, 0x0C, 0x06


def _starts_mpeg(data: bytes) -> bool:
    if len(data) < 3 or data[0] != 0xFF or data[1] & MPEG_SYNC != MPEG_SYNC:
        return False
    return data[1] & LAYER != 0 and data[2] & BAD_BITRATE != BAD_BITRATE and data[2] & BAD_RATE != BAD_RATE


def _starts_adts(data: bytes) -> bool:
    return len(data) >= 2 and data[0] == 0xFF and data[1] & (0xF0 | LAYER) == 0xF0


def _starts_ac3(data: bytes) -> bool:
    return data.startswith(b"\x0b\x77")


STARTS: dict[str, Callable[[bytes], bool]] = {
    "mp3": _starts_mpeg,
    "aac": _starts_adts,
    "ac3": _starts_ac3,
    "eac3": _starts_ac3,
}
"""By FFmpeg's name of the format (mp3 includes MP2), whether bytes begin as a frame does."""


class Tail:
    """Failures that are reported only if a frame follows.

    Attributes:
        has_frames: whether a frame was decoded.
        held: the reason of the first failure, "" if there is none.
    """

    def __init__(self, container: av.container.InputContainer) -> None:
        self._starts = STARTS.get(container.format.name)
        self.has_frames = False
        self._num_failed = self._num_to_come = 0
        self.held = ""

    def report(self) -> str:
        """Return the failure that came before a frame, "" if none did."""
        if self._num_to_come > 0:
            return ""
        held, self.held, self._num_failed = self.held, "", 0
        return held

    def may_end(self) -> bool:
        """Return whether bytes that make no packet may be what follows the last frame."""
        return self._starts is not None and self.has_frames

    def passes_over(self, error: av.FFmpegError, problem: str) -> bool:
        """Return whether to read on: FFmpeg found no packet of a transport stream in 64 KiB, and calls this EAGAIN."""
        self._num_failed += 1
        if not isinstance(error, BlockingIOError) or self._num_failed > MAX_FAILED:
            return False
        self.held, self._num_to_come = self.held or problem, 2
        return True

    def packet_read(self, packet: av.Packet[Any]) -> None:
        """Record a packet. After a failed reading, FFmpeg may still hold one that it read before."""
        self._num_to_come -= packet.size > 0

    def holds(self, packet: av.Packet[Any], problem: str) -> bool:
        """Return whether a failed packet may be what follows the last frame."""
        if not self.has_frames or self._starts is None or (self.held and self._starts(bytes(packet))):
            return False
        self.held = self.held or problem
        return True
