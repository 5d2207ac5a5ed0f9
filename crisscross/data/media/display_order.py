"""Times for frames: a decoder returns frames in display order, but their times may be those of decoding.

AVI stores no times of display, and FFmpeg then uses the order of the packets; a copy of such a file into another
container keeps these times. With B-frames a frame's time is then off by up to the number of B-frames in a row, 16 with
H.264. Sorted, the times are right.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import av

from crisscross.data.media.streams import tick_of

LIMIT = 24
"""Frames that wait at most: encoders put up to 16 B-frames in a row, and a decoder keeps a few more. A packet that
gives no frame is waited for as long."""
# ours: frames that always wait, also where no packet is missing: FFmpeg's guesses for AVI with MPEG-4 (35 of 174 UCF101
# and HMDB51 files), and copies of such files.
AVI_DEPTH, DEPTH = 4, 2
Entry = TypeVar("Entry")


class DisplayOrder(Generic[Entry]):
    """Frames that wait until no frame in the decoder can have an earlier time.

    Args:
        container: an open file.
        stream: its video stream.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._codec, self._tick_s = stream.codec_context, float(tick_of(stream))
        self._depth = AVI_DEPTH if container.format.name == "avi" else DEPTH
        self._times: list[float] = []
        self._waiting: deque[Entry] = deque()
        self._sent: dict[int, int] = {}  # timestamp of a packet in the decoder -> frames that came out before it
        self._num_out = 0
        self._last_pts: int | None = None
        self._has_display_times = False

    def sent(self, packet: av.Packet[av.VideoStream]) -> None:
        """Record a packet that goes into the decoder.

        Times that go back from packet to packet are times of display, for which there is nothing to wait.
        """
        if packet.pts is None or self._has_display_times or not self._codec.reorder_depth:
            return
        if self._last_pts is not None and packet.pts < self._last_pts:
            self._has_display_times = True
            self._sent.clear()
            return
        self._last_pts = packet.pts
        self._sent[packet.pts] = self._num_out

    def add(self, frame: av.VideoFrame, time_s: float, entry: Entry) -> None:
        """Append a decoded frame with the time that it came with."""
        self._num_out += 1
        if frame.pts is not None:
            self._sent.pop(frame.pts, None)
        heapq.heappush(self._times, time_s)
        self._waiting.append(entry)

    def ready(self) -> Iterator[tuple[float, Entry]]:
        """Yield the frames that need not wait, each with the earliest time left."""
        while len(self._waiting) > self._depth and not self._is_earlier_pending():
            yield heapq.heappop(self._times), self._waiting.popleft()

    def _is_earlier_pending(self) -> bool:
        """Return whether a packet in the decoder has a time before that of each frame that waits."""
        while self._sent:
            pts = min(self._sent)
            if self._num_out - self._sent[pts] <= LIMIT:
                return pts * self._tick_s < self._times[0] and len(self._waiting) <= LIMIT
            del self._sent[pts]  # it gave no frame
        return False

    def rest(self) -> Iterator[tuple[float, Entry]]:
        """Yield all frames that wait."""
        while self._waiting:
            yield heapq.heappop(self._times), self._waiting.popleft()
