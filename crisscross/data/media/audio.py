"""Cut windows out of a file's sound: mono, at the asked rate, placed by presentation time.

The resampled sound lies on one grid for the whole file: sample n is the sound at n / rate seconds of the file's
timeline. A window is a slice of that grid, from the sample nearest to its start. Each window is resampled from
decoded samples that reach past its edges by the filter's length, so it equals, bit for bit, the same slice of
the whole sound resampled at once.

Chosen by us: channels are averaged with equal weights (as librosa and torchaudio users do; 5.1 too). Peaks above
1.0, which lossy codecs give, are kept. Silence is sound like any other. Outside the stream there are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from crisscross.data.media.streams import DecodeError, SeekError, decoded_frames, seek, tick_of

# Timestamps jitter by about one AAC frame, 21 ms (5 of 70 real clips, measured); beyond this they mean it.
JUMP_S = 0.025
WRAP_S = 1.0  # a step back this far is a broken clock, not an overlap: the sound goes on (chosen by us)
# Nearer than this it is decoded, not sought: exact for every codec and container, and 10 s of AAC take 7 ms.
SEEK_BEYOND_S = 15.0
EXACT_FORMATS = ("mov", "wav", "flac")  # count in samples; others round, and a seek would shift the sound a little
PREROLL_S = 1.0  # decoded and dropped after a seek: AAC needs 2 frames, MP3 its bit reservoir, Opus 80 ms
# The low-pass filter (chosen by us): at 16 kHz flat to 6.3 kHz, -80 dB from 8.9 kHz.
FILTER_HALF_WIDTH = 16  # zero crossings on either side
FILTER_CUTOFF = 0.95  # where it is at -6 dB, as a part of the lower of the two Nyquist rates
FILTER_KAISER_BETA = 8.0


@dataclass(frozen=True)
class Chunk:
    """A decoded piece of sound.

    Attributes:
        first: index of its first sample on the file's timeline, at the stream's own rate.
        num_samples: samples per channel.
        frame: the decoded frame; None for the mark at the end of a stream that breaks off.
        lost_from: index from which sound is missing or unsure up to the end of this chunk; None when all is well.
        lost: why.
        skip: how many samples of the frame to leave out at its start, as they overlap the chunk before.
    """

    first: int
    num_samples: int
    frame: av.AudioFrame | None
    lost_from: int | None = None
    lost: str = ""
    skip: int = 0

    @property
    def end(self) -> int:
        """Index just after its last sample."""
        return self.first + self.num_samples


def chunks(container: av.container.InputContainer, stream: av.AudioStream, path: str | Path) -> Iterator[Chunk]:
    """Yield the stream's sound from where the container stands, each piece placed by its timestamp.

    Pieces whose timestamps are within ``JUMP_S`` of touching are joined. A step forward beyond that is a gap, a
    step back an overlap, where the earlier piece wins. Frames before the first timestamp are dropped.

    Raises:
        DecodeError: the sample rate changes within the stream.
    """
    expected: int | None = None
    rate_hz: int | None = None
    lost = ""
    tick_s = tick_of(stream)
    tick, ticks_per_s = tick_s.numerator, tick_s.denominator
    for frame, problem in decoded_frames(container, stream):
        if frame is None:
            lost = problem
            continue
        if frame.samples == 0:
            continue
        if frame.pts is not None:
            first = round(frame.pts * tick * frame.sample_rate / ticks_per_s)
        elif expected is not None:
            first = expected
        else:
            continue
        rate_hz = rate_hz or frame.sample_rate
        if frame.sample_rate != rate_hz:
            text = f"the audio sample rate changes from {rate_hz} to {frame.sample_rate} Hz"
            raise DecodeError.about(path, text)
        expected_or_first = first if expected is None else expected
        step = first - expected_or_first
        if abs(step) <= JUMP_S * rate_hz or step < -WRAP_S * rate_hz:
            first, step = expected_or_first, 0
        skip = min(max(0, -step), frame.samples)
        lost_from = expected if lost else None
        yield Chunk(first + skip, frame.samples - skip, frame, lost_from, lost, skip)
        expected, lost = max(expected_or_first, first + frame.samples), ""
    if lost:
        yield Chunk(expected or 0, 0, None, expected or 0, lost)


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
    """Return windows of sound.

    Args:
        container: an open file.
        stream: its audio stream.
        path: the file's name, for messages.
        starts_s: where each window starts, in seconds.
        num_samples: the length of each, in samples at ``sample_rate_hz``.
        sample_rate_hz: the rate wanted.
        seeks: whether it may seek; without, the container must stand at its start.

    Returns:
        float32 array of shape (A, num_samples).

    Raises:
        DecodeError: sound within a window does not decode, the stream holds no sound, or it is not finite.
        SeekError: a seek landed too late; open the file anew with ``seeks=False``.
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
        raise DecodeError.about(path, "the sound holds values that are not finite")
    return waveforms


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Return a frame's samples averaged over channels: float32 of shape (samples,), full scale at 1.0."""
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
    """Reads spans of native samples whose starts rise, keeping the pieces that a later span may still need."""

    def __init__(
        self, container: av.container.InputContainer, stream: av.AudioStream, path: str | Path, *, seeks: bool
    ):
        self._container, self._stream, self._path = container, stream, path
        self._seeks = seeks and container.format.name.split(",")[0] in EXACT_FORMATS
        self._kept: list[tuple[Chunk, np.ndarray | None]] = []
        self._feed = chunks(container, stream, path)
        first = next(self._feed, None)
        if first is None or first.frame is None:
            raise DecodeError.about(path, f"no audio: {first.lost if first else 'the stream holds no samples'}")
        self.rate_hz: int = first.frame.sample_rate
        self._position: float = first.first  # index up to which the sound has been decoded
        self._take(first, first.first)

    def read(self, low: int, high: int) -> np.ndarray:
        """Return samples ``low`` to ``high`` of the timeline: float32, zeros where the stream has none."""
        self._kept = [kept for kept in self._kept if kept[0].end > low or kept[0].lost]
        if self._seeks and low - self._position > SEEK_BEYOND_S * self.rate_hz:
            seek(self._container, self._stream, low / self.rate_hz - PREROLL_S)
            self._feed, self._kept = chunks(self._container, self._stream, self._path), []
            first = next(self._feed, None)
            if first is None or first.frame is None or first.first > low:
                raise SeekError("the seek landed late, or nowhere")
            self._take(first, low)
        while self._position < high:
            chunk = next(self._feed, None)
            if chunk is None:
                self._position = math.inf
            else:
                self._take(chunk, low)
        return self._assemble(low, high)

    def _take(self, chunk: Chunk, low: int) -> None:
        self._position = max(self._position, chunk.end)
        if chunk.end > low or chunk.lost:
            self._kept.append((chunk, mono(chunk.frame)[chunk.skip :] if chunk.frame is not None else None))

    def _assemble(self, low: int, high: int) -> np.ndarray:
        samples = np.zeros(high - low, dtype=np.float32)
        for chunk, values in self._kept:
            spoilt_end = math.inf if values is None else chunk.end
            if chunk.lost_from is not None and chunk.lost_from < high and spoilt_end > low:
                where_s = chunk.lost_from / self.rate_hz
                raise DecodeError.about(self._path, f"the sound does not decode at {where_s:.3f} s: {chunk.lost}")
            begin, stop = max(chunk.first, low), min(chunk.end, high)
            if values is not None and stop > begin:
                samples[begin - low : stop - low] = values[begin - chunk.first : stop - chunk.first]
        return samples


@dataclass(frozen=True)
class _Grid:
    """The two sample grids of a file, which meet at time 0 and then every ``down`` native = ``up`` wanted samples."""

    up: int
    down: int

    @classmethod
    def between(cls, native_hz: int, wanted_hz: int) -> _Grid:
        common = math.gcd(native_hz, wanted_hz)
        return cls(wanted_hz // common, native_hz // common)

    @property
    def margin_blocks(self) -> int:
        """Blocks of ``down`` native samples that hold the filter's reach on either side."""
        reach = FILTER_HALF_WIDTH * max(self.up, self.down) / self.up
        return 0 if self.up == self.down else math.ceil(reach / self.down)

    def needed(self, first_out: int, num_out: int) -> tuple[int, int]:
        """Return the span of native samples from which a span of wanted samples is computed."""
        first_block = first_out // self.up - self.margin_blocks
        last_block = -((-first_out - num_out) // self.up) + self.margin_blocks
        return first_block * self.down, last_block * self.down

    def resample(self, native: np.ndarray, first_out: int, num_out: int) -> np.ndarray:
        """Filter the samples of ``needed`` and return the wanted ones."""
        skip = first_out % self.up + self.margin_blocks * self.up
        if self.up == self.down:
            return native[skip : skip + num_out]
        from scipy.signal import upfirdn  # takes a third of a second to import, and only workers need it

        taps, delay_out = _low_pass(self.up, self.down)
        return upfirdn(taps, native, self.up, self.down)[skip + delay_out :][:num_out]


@lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> tuple[np.ndarray, int]:
    """Return the filter and its delay in wanted samples, made whole by leading zeros."""
    from scipy.signal import firwin

    largest = max(up, down)
    half = FILTER_HALF_WIDTH * largest
    taps = firwin(2 * half + 1, FILTER_CUTOFF / largest, window=("kaiser", FILTER_KAISER_BETA)) * up
    delay_out = -(-half // down)
    taps = np.concatenate([np.zeros(delay_out * down - half), taps])
    return taps.astype(np.float32), delay_out
