"""The order of pieces of audio, and seeks that change nothing about it.

A seek is made only where the window is then the one that decoding from the start gives:

- PCM in WAV, where a sample's place in the file gives its time. ADPCM and other codecs in WAV are read from the start:
  there FFmpeg seeks by the byte rate in the header, which is an estimate.
- PCM, FLAC, ALAC and AAC in mp4 and QuickTime, whose index lists every packet. The packets that a seek skips are placed
  by the same rule as those that are decoded.

Elsewhere timestamps are rounded, or a seek cannot be checked: two FLAC files in one have two clocks. To decode a minute
takes 70 ms of AAC, 90 ms of FLAC.

After a seek, the AAC decoder makes other noise for bands that the encoder marked as noise: the window lies at the same
place, but is not the same bits. Files of FFmpeg's own encoder have such bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import av

from crisscross.data.media.streams import seek, tick_of

# Timestamps jitter by about one AAC frame, 21 ms (5 of 70 real clips, measured); a larger step is a gap.
JUMP_S = 0.025
WRAP_S = 1.0  # ours: a step back this far is a broken clock, not an overlap: the samples are joined
PREROLL_S = 1.0  # decoded and dropped after a seek: AAC needs 2 frames
PCM_BITS = {
    "pcm_u8": 8,
    "pcm_mulaw": 8,
    "pcm_alaw": 8,
    "pcm_s16le": 16,
    "pcm_s24le": 24,
    "pcm_s32le": 32,
    "pcm_f32le": 32,
    "pcm_f64le": 64,
}
"""Codecs that are sought in WAV, with the bits of a stored sample."""
LOSSLESS = ("flac", "alac")
FIXED_FRAMES = ("aac",)
"""Codecs whose packets all hold the same number of samples, whatever their timestamps."""


@dataclass
class Timeline:
    """Where the next piece of audio goes, in samples: one rule for pieces that are decoded and pieces that are skipped.

    Attributes:
        rate_hz: of the samples.
        end: index after the last piece; None before the first.
    """

    rate_hz: int
    end: int | None = None

    def place(self, first: int, num_samples: int, *, after_loss: bool = False) -> tuple[int, int]:
        """Append a piece.

        A step of up to ``JUMP_S`` is jitter, and a step back over ``WRAP_S`` is a clock that starts again: the piece is
        joined to the last one. A larger step forward is a gap, a step back an overlap, of which the earlier piece is
        kept.

        Args:
            first: index of its first sample by its timestamp.
            num_samples: its length.
            after_loss: whether audio before it did not decode; its timestamp then counts.

        Returns:
            The index of the first sample that is kept, and how many before it are left out.
        """
        expected = first if self.end is None else self.end
        step = first - expected
        is_jitter = abs(step) <= JUMP_S * self.rate_hz and not after_loss
        if is_jitter or step < -WRAP_S * self.rate_hz:
            first, step = expected, 0
        skip = min(max(0, -step), num_samples)
        self.end = max(expected, first + num_samples)
        return first + skip, skip


def sample_index(tick: tuple[int, int], pts: int, rate_hz: int) -> int:
    """Return the index of the sample nearest to a timestamp, in ticks of a fraction of a second."""
    return round(pts * tick[0] * rate_hz / tick[1])


@dataclass(frozen=True)
class Landing:
    """Where a seek lands.

    Attributes:
        pts: timestamp of the first packet; None if it is not known before.
        num_samples: samples in it; None likewise.
        timeline: the timeline up to it.
    """

    pts: int | None
    num_samples: int | None
    timeline: Timeline


def seek_exactly(
    container: av.container.InputContainer, stream: av.AudioStream, time_s: float, last: av.AudioFrame, now: Timeline
) -> Landing | None:
    """Seek to ``PREROLL_S`` before a time, if that changes nothing.

    Args:
        container: an open file.
        stream: its audio stream.
        time_s: the time.
        last: the frame that was decoded last.
        now: the timeline after that frame.

    Returns:
        Where the seek should land; None without a seek.

    Raises:
        SeekError: if FFmpeg cannot seek.
    """
    time_s -= PREROLL_S
    landing: Landing | None = None
    kind = container.format.name.split(",")[0]
    if kind == "wav" and _is_plain_pcm(stream):
        landing = Landing(None, None, Timeline(now.rate_hz))
    elif kind == "mov":
        landing = _landing(stream, math.floor(time_s / tick_of(stream)), last, now)
    if landing is not None:
        seek(container, stream, time_s)
    return landing


def _is_plain_pcm(stream: av.AudioStream) -> bool:
    """Return whether the header's byte rate, by which FFmpeg seeks in WAV, is that of the samples."""
    codec = stream.codec_context
    bits = PCM_BITS.get(codec.name, 0)
    return codec.bit_rate == bits * codec.sample_rate * codec.layout.nb_channels


def _landing(stream: av.AudioStream, ticks: int, last: av.AudioFrame, now: Timeline) -> Landing | None:
    """Place the packets between the last decoded one and a time, by the index; None if they may decode otherwise."""
    name, index = stream.codec_context.name, stream.index_entries
    is_pcm, num_samples = name.startswith("pcm_"), stream.codec_context.frame_size or last.samples
    if last.pts is None or not (is_pcm or name in LOSSLESS or name in FIXED_FRAMES):
        return None
    begin, end = index.search_timestamp(last.pts), index.search_timestamp(ticks)
    if begin < 0 or end <= begin + 1 or end + 1 >= len(index):  # an index of a part of the file may end too early
        return None
    tick = tick_of(stream).as_integer_ratio()
    timeline, first_bytes = replace(now), max(index[begin].size, 1)
    for row in range(begin + 1, end + 1):
        entry = index[row]
        first = sample_index(tick, entry.timestamp, now.rate_hz)
        if entry.is_discard or (name not in FIXED_FRAMES and first != timeline.end):
            return None
        if row < end:
            timeline.place(first, entry.size * last.samples // first_bytes if is_pcm else num_samples)
    return Landing(entry.timestamp, None if is_pcm else num_samples, timeline)
