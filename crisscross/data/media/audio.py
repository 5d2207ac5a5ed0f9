"""Windows of a file's audio: mono, at a given sample rate, placed by presentation time.

The resampled audio lies on one grid for the whole file: sample n belongs to n / rate seconds of the file's timeline. A
window is a slice of that grid, from the sample nearest to its start. Each window is resampled from decoded samples
that reach past its edges by the filter's length, so it equals, bit for bit, the same slice of the whole stream
resampled at once, whichever other windows are read with it. AAC read after a seek is an exception: its place is the
same, noise that its decoder adds may not be (``audio_seek.py``).

# ours: channels are averaged with equal weights (as librosa and torchaudio users do; 5.1 too). Peaks above 1.0, which
  lossy codecs produce, are kept. Outside the stream there are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import scipy  # a light import: scipy.signal (0.3 s) loads on first use, in the loader workers alone

from crisscross.data.media.audio_seek import Landing, Timeline, sample_index, seek_exactly
from crisscross.data.media.streams import DecodeError, SeekError, decoded_frames, tick_of

# A nearer window is reached by decoding, which is exact for every codec and container; 10 s of AAC take 7 ms.
SEEK_BEYOND_S = 15.0
# ours: the low-pass filter, at 16 kHz flat to 6.3 kHz, -80 dB from 8.9 kHz.
FILTER_HALF_WIDTH = 16  # zero crossings on either side
FILTER_CUTOFF = 0.95  # its -6 dB point, as a fraction of the lower of the two Nyquist frequencies
FILTER_KAISER_BETA = 8.0


@dataclass(frozen=True)
class Chunk:
    """A decoded piece of audio.

    Attributes:
        first: index of its first sample on the file's timeline, at the stream's sample rate.
        num_samples: samples per channel.
        frame: the decoded frame; None for the marker at the end of a truncated stream.
        dropped_from: index from which audio is missing or unreliable up to the end of this chunk; None if none is.
        dropped: why, "" if none is.
        skip: number of samples at the frame's start that overlap the previous chunk and are left out.
    """

    first: int
    num_samples: int
    frame: av.AudioFrame | None
    dropped_from: int | None = None
    dropped: str = ""
    skip: int = 0

    @property
    def end(self) -> int:
        """Index just after its last sample."""
        return self.first + self.num_samples


def chunks(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: str | Path,
    landing: Landing | None = None,
) -> Iterator[Chunk]:
    """Yield the stream's audio from the container's position on, placed by ``Timeline``.

    Frames before the first timestamp are left out.

    Args:
        container: an open file, at its start or after a seek.
        stream: its audio stream.
        path: the file's name, for messages.
        landing: where the seek should have landed.

    Raises:
        DecodeError: if the sample rate changes within the stream.
        SeekError: if the seek landed elsewhere.
    """
    timeline = landing.timeline if landing is not None else None
    tick, dropped = tick_of(stream).as_integer_ratio(), ""
    for frame, problem in decoded_frames(container, stream):
        if frame is None:
            dropped = problem
            continue
        if frame.samples == 0:
            continue
        if landing is not None:
            _check_landing(landing, frame)
            landing = None
        if timeline is None:
            timeline = Timeline(frame.sample_rate)
        if frame.sample_rate != timeline.rate_hz:
            text = f"the audio sample rate changes from {timeline.rate_hz} to {frame.sample_rate} Hz"
            raise DecodeError.about(path, text)
        expected = timeline.end
        if frame.pts is not None:
            first = sample_index(tick, frame.pts, timeline.rate_hz)
        elif expected is not None:
            first = expected
        else:
            continue
        first, skip = timeline.place(first, frame.samples, after_loss=bool(dropped))
        yield Chunk(first, frame.samples - skip, frame, expected if dropped else None, dropped, skip)
        dropped = ""
    if dropped:
        end = timeline.end if timeline is not None else None
        yield Chunk(end or 0, 0, None, end or 0, dropped)


def _check_landing(landing: Landing, frame: av.AudioFrame) -> None:
    """Check the first frame after a seek.

    Raises:
        SeekError: if it is not the frame on which the seek should land.
    """
    if landing.pts not in (None, frame.pts) or landing.num_samples not in (None, frame.samples):
        raise SeekError("the seek landed elsewhere")


def read_waveforms(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: str | Path,
    starts_s: Sequence[float],
    *,
    num_samples: int,
    sample_rate_hz: int,
    seeks: bool,
) -> np.ndarray:
    """Read windows of audio.

    Args:
        container: an open file.
        stream: its audio stream.
        path: the file's name, for messages.
        starts_s: start of each window in seconds.
        num_samples: length of a window at ``sample_rate_hz``.
        sample_rate_hz: sample rate of the result.
        seeks: whether to seek; without, the container must be at its start.

    Returns:
        float32 array of shape (A, num_samples).

    Raises:
        DecodeError: if audio within a window does not decode, is not finite, or the stream holds none.
        SeekError: if a seek landed too late; open the file again with ``seeks=False``.
    """
    reader = _Reader(container, stream, path, seeks=seeks)
    grid = _Grid.between(reader.rate_hz, sample_rate_hz)
    waveforms = np.zeros((len(starts_s), num_samples), dtype=np.float32)
    for row in sorted(range(len(starts_s)), key=lambda row: starts_s[row]):
        first_out = round(starts_s[row] * sample_rate_hz)
        low, high = grid.needed(first_out, num_samples)
        native = reader.read(low, high)
        waveforms[row] = grid.resample(native, first_out, num_samples)
    if not np.isfinite(waveforms).all():
        raise DecodeError.about(path, "the audio holds values that are not finite")
    return waveforms


def read_all(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    path: str | Path,
    *,
    sample_rate_hz: int,
    max_seconds: float,
) -> tuple[int, np.ndarray]:
    """Read the whole of a short stream, on the grid of ``read_waveforms``.

    Args:
        container: an open file, at its start.
        stream: its audio stream.
        path: the file's name, for messages.
        sample_rate_hz: sample rate of the result.
        max_seconds: the longest stream to read.

    Returns:
        The index of the first sample on the grid, and (S,) float32; any window is zero outside.

    Raises:
        DecodeError: if the stream is longer, any of it does not decode, or is not finite.
    """
    reader = _Reader(container, stream, path, seeks=False)
    begin, end = reader.read_to_end(max_seconds)
    grid = _Grid.between(reader.rate_hz, sample_rate_hz)
    reach = (grid.margin_blocks + 1) * grid.up  # the filter rings on either side
    first = begin * sample_rate_hz // reader.rate_hz - reach
    num_samples = -(-end * sample_rate_hz // reader.rate_hz) + reach - first
    samples = grid.resample(reader.read(*grid.needed(first, num_samples)), first, num_samples)
    if not np.isfinite(samples).all():
        raise DecodeError.about(path, "the audio holds values that are not finite")
    return first, np.ascontiguousarray(samples, dtype=np.float32)


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Average a frame over its channels: (samples,) float32, full scale at 1.0."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(frame.samples, -1).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values / np.float32(2.0 ** (8 * values.dtype.itemsize - 1))
    total = values[0].astype(np.float32)
    for channel in values[1:]:
        total += channel
    return total / np.float32(len(values)) if len(values) > 1 else total


class _Reader:
    """A reader of spans of native samples in ascending order.

    The spans are ordered by their starts. Chunks that a later span may still need are kept.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.AudioStream, path: str | Path, *, seeks: bool
    ):
        self._container, self._stream, self._path = container, stream, path
        self._seeks = seeks
        self._kept: list[tuple[Chunk, np.ndarray | None]] = []
        self._feed = chunks(container, stream, path)
        first = next(self._feed, None)
        if first is None or first.frame is None:
            raise DecodeError.about(path, f"no audio: {first.dropped if first else 'the stream holds no samples'}")
        self.rate_hz: int = first.frame.sample_rate
        self._position: float = first.first  # index up to which the audio is decoded
        self._last_frame = first.frame
        self._take(first, first.first)

    def read(self, low: int, high: int) -> np.ndarray:
        """Return samples [low, high) of the timeline as float32.

        They are zero where the stream has none.
        """
        self._kept = [kept for kept in self._kept if kept[0].end > low or kept[0].dropped]
        if self._seeks and low - self._position > SEEK_BEYOND_S * self.rate_hz:
            self._seek(low)
        while self._position < high:
            chunk = next(self._feed, None)
            if chunk is None:
                self._position = math.inf
            else:
                self._take(chunk, low)
        return self._assemble(low, high)

    def _seek(self, low: int) -> None:
        """Continue just before a sample, if a seek changes nothing.

        Raises:
            SeekError: if the seek landed late, or elsewhere.
        """
        now = Timeline(self.rate_hz, int(self._position))
        landing = seek_exactly(self._container, self._stream, low / self.rate_hz, self._last_frame, now)
        if landing is None:
            return
        self._feed, self._kept = chunks(self._container, self._stream, self._path, landing), []
        first = next(self._feed, None)
        if first is None or first.frame is None or first.first > low:
            raise SeekError("the seek landed late, or nowhere")
        self._take(first, low)

    def read_to_end(self, max_seconds: float) -> tuple[int, int]:
        """Decode the rest and keep it; return the span of native samples.

        Raises:
            DecodeError: if it is longer than ``max_seconds``, or audio is missing.
        """
        begin = self._kept[0][0].first
        for chunk in self._feed:
            self._take(chunk, begin)
            if chunk.end - begin > max_seconds * self.rate_hz:
                raise DecodeError.about(self._path, f"the audio is longer than {max_seconds:g} s")
        end, self._position = int(self._position), math.inf
        if any(chunk.dropped for chunk, _ in self._kept):
            raise DecodeError.about(self._path, "some of the audio does not decode")
        return begin, end

    def _take(self, chunk: Chunk, low: int) -> None:
        self._position = max(self._position, chunk.end)
        self._last_frame = chunk.frame or self._last_frame
        if chunk.end > low or chunk.dropped:
            self._kept.append((chunk, mono(chunk.frame)[chunk.skip :] if chunk.frame is not None else None))

    def _assemble(self, low: int, high: int) -> np.ndarray:
        samples = np.zeros(high - low, dtype=np.float32)
        for chunk, values in self._kept:
            corrupt_end = math.inf if values is None else chunk.end
            if chunk.dropped_from is not None and chunk.dropped_from < high and corrupt_end > low:
                where_s = chunk.dropped_from / self.rate_hz
                raise DecodeError.about(self._path, f"the audio does not decode at {where_s:.3f} s: {chunk.dropped}")
            begin, stop = max(chunk.first, low), min(chunk.end, high)
            if values is not None and stop > begin:
                samples[begin - low : stop - low] = values[begin - chunk.first : stop - chunk.first]
        return samples


@dataclass(frozen=True)
class _Grid:
    """The native and the output sample grid.

    They meet every ``down`` native samples, which are ``up`` output samples.
    """

    up: int
    down: int

    @classmethod
    def between(cls, native_hz: int, output_hz: int) -> _Grid:
        common = math.gcd(native_hz, output_hz)
        return cls(output_hz // common, native_hz // common)

    @property
    def margin_blocks(self) -> int:
        """Number of blocks that the filter reaches to either side.

        A block is ``down`` native samples.
        """
        reach = FILTER_HALF_WIDTH * max(self.up, self.down) / self.up
        return 0 if self.up == self.down else math.ceil(reach / self.down)

    def needed(self, first_out: int, num_out: int) -> tuple[int, int]:
        """Return the span of native samples behind a span of output samples."""
        first_block = first_out // self.up - self.margin_blocks
        last_block = -((-first_out - num_out) // self.up) + self.margin_blocks
        return first_block * self.down, last_block * self.down

    def resample(self, native: np.ndarray, first_out: int, num_out: int) -> np.ndarray:
        """Resample the native samples of ``needed``."""
        skip = first_out % self.up + self.margin_blocks * self.up
        if self.up == self.down:
            return native[skip : skip + num_out]
        taps, delay_out = _low_pass(self.up, self.down)
        return scipy.signal.upfirdn(taps, native, self.up, self.down)[skip + delay_out :][:num_out]


@lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> tuple[np.ndarray, int]:
    """Return the filter and its delay in output samples.

    Leading zeros make the delay an integer.
    """
    largest = max(up, down)
    half = FILTER_HALF_WIDTH * largest
    taps = scipy.signal.firwin(2 * half + 1, FILTER_CUTOFF / largest, window=("kaiser", FILTER_KAISER_BETA)) * up
    delay_out = -(-half // down)
    taps = np.concatenate([np.zeros(delay_out * down - half), taps])
    return taps.astype(np.float32), delay_out
