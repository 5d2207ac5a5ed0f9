"""Encode one compact copy of a clip: small H.264 frames, frequent key frames, audio at 16 kHz.

A copy holds what this project's decoder returns: frames upright, with square pixels, in display order and at the times
of ``media/video.py``; audio mono, on the sample grid of ``media/audio.py``. Each copy is read back before it counts.

Frames and audio go into one mp4, the audio as FLAC. AAC would be half as large, but its encoder delay (64 ms at
16 kHz) becomes audible if a stream starts late, and its end is only known to one AAC frame (64 ms). FLAC keeps the
first and the last sample in place, and decodes to the same samples on every machine. A clip without video becomes a
FLAC file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from crisscross.data.media.audio import chunks, read_waveforms
from crisscross.data.media.streams import DecodeError, choose_stream, describe, open_media
from crisscross.data.media.video import (
    SAME_TIME_S,
    TimedFrame,
    TruncatedEnd,
    displayed_size,
    from_rgb,
    pixel_aspect,
    timed_frames,
    to_rgb,
)

FINE_TICKS_HZ = 90_000  # MPEG's time base; a coarser time base is refined to at least this
MAX_TICKS_HZ = 1_000_000  # ours: a finer time base is replaced by MPEG's
MAX_MOVIE_TICKS_HZ = 2**31 - 1  # FFmpeg's limit of mp4's movie_timescale
BLOCK_S = 10  # ours: seconds of audio read at a time
FULL_SCALE = 2**15  # of 16-bit samples


@dataclass(frozen=True)
class Streams:
    """The streams of a clip, from its manifest.

    Times are in seconds; NaN means that there is no stream.

    Attributes:
        video_start_s: time of the first frame.
        video_end_s: end of the last frame.
        audio_start_s: time of the first sample.
        audio_end_s: end of the last sample.
    """

    video_start_s: float
    video_end_s: float
    audio_start_s: float
    audio_end_s: float

    @property
    def has_video(self) -> bool:
        """Whether there is video."""
        return not math.isnan(self.video_start_s)

    @property
    def has_audio(self) -> bool:
        """Whether there is audio."""
        return not math.isnan(self.audio_start_s)

    def shift_s(self, sample_rate_hz: int) -> float:
        """Return the delay of the copy in seconds.

        It is 0 unless the clip starts before 0: players cut an mp4 that starts before 0. The delay is a whole number of
        samples.
        """
        starts = [start for start in (self.video_start_s, self.audio_start_s) if not math.isnan(start)]
        return math.ceil(max(0.0, -min(starts)) * sample_rate_hz - 1e-6) / sample_rate_hz


def write_copy(source: Path, copy: Path, streams: Streams, settings: CompactSettings) -> None:
    """Write the compact copy of a clip and read it back.

    Args:
        source: the clip.
        copy: the file to write; incomplete until this returns.
        streams: the streams of the clip.
        settings: size and quality of the copy.

    Raises:
        DecodeError: if the clip is damaged, or the copy does not decode to what was encoded.
        OSError: if the disk is full or cannot be written.
    """
    shift_s = streams.shift_s(settings.sample_rate_hz)
    first = round((streams.audio_start_s + shift_s) * settings.sample_rate_hz) if streams.has_audio else 0
    waveform = _read_audio(source, streams, settings.sample_rate_hz) if streams.has_audio else None
    times_s: list[float] = []
    buffer = io.BytesIO()
    try:
        if waveform is not None and not streams.has_video:
            _encode_flac(buffer, waveform, settings.sample_rate_hz)
            first = 0  # a FLAC file begins at 0
        else:
            times_s = _encode_mp4(buffer, source, streams, settings, waveform=waveform, first=first, shift_s=shift_s)
    except av.FFmpegError as error:
        raise DecodeError.about(source, f"cannot be encoded: {describe(error)}") from error
    copy.write_bytes(buffer.getbuffer())
    _check_copy(source, copy, times_s, first=first, num_samples=0 if waveform is None else len(waveform))


def _read_audio(source: Path, streams: Streams, sample_rate_hz: int) -> np.ndarray:
    """Return the whole audio as training reads it: int16 of shape (S,)."""
    first = round(streams.audio_start_s * sample_rate_hz)
    num_samples = max(1, round(streams.audio_end_s * sample_rate_hz) - first)
    block = min(num_samples, BLOCK_S * sample_rate_hz)
    starts_s = [(first + done) / sample_rate_hz for done in range(0, num_samples, block)]
    with open_media(source) as container:
        stream = choose_stream(container, source, "audio")
        if stream is None:
            raise DecodeError.about(source, "no audio stream any more: build the manifest again")
        wanted = {"num_samples": block, "sample_rate_hz": sample_rate_hz}
        waveforms = read_waveforms(container, stream, source, starts_s, seeks=False, **wanted)
    scaled = waveforms.reshape(-1)[:num_samples] * FULL_SCALE
    return np.clip(np.rint(scaled), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _encode_mp4(
    buffer: io.BytesIO,
    source: Path,
    streams: Streams,
    settings: CompactSettings,
    *,
    waveform: np.ndarray | None,
    first: int,
    shift_s: float,
) -> list[float]:
    """Encode a clip's frames, and its audio if there is any.

    Returns:
        The times of the frames in the copy.
    """
    with open_media(source) as container:
        stream = choose_stream(container, source, "video")
        if stream is None:
            raise DecodeError.about(source, "no video stream any more: build the manifest again")
        ticks_hz = ticks_of(stream.time_base)
        options = {"movie_timescale": str(_movie_ticks(ticks_hz, settings.sample_rate_hz))}
        with av.open(buffer, "w", format="mp4", options=options) as target:
            # PyAV adds streams before the first packet, and a video stream has a fixed size.
            seen = _intact_frames(container, stream, source)
            opening = next(seen)
            size = copy_size(*displayed_size(opening.frame, pixel_aspect(stream)), settings.short_side_px)
            video = _add_video(target, size, ticks_hz, settings)
            audio = None if waveform is None else target.add_stream("flac", rate=settings.sample_rate_hz, layout="mono")
            packets: list[av.Packet[av.stream.Stream]] = []
            pts: list[int] = []
            for shown in chain([opening], seen):
                tick = round((shown.time_s + shift_s) * ticks_hz)
                pts.append(max(tick, pts[-1] + 1) if pts else tick)
                frame = from_rgb(to_rgb(shown.frame, pixel_aspect(stream), size))
                frame.pts, frame.time_base = pts[-1], Fraction(1, ticks_hz)
                packets += video.encode(frame)
            packets += video.encode()
            ends = [*pts[1:], max(round((streams.video_end_s + shift_s) * ticks_hz), pts[-1] + 1)]
            # No B-frames: packets are in display order, one per frame.
            for packet, start, end in zip(packets, pts, ends, strict=True):
                packet.duration = end - start
            if audio is not None and waveform is not None:
                packets += _audio_packets(audio, waveform, first, settings.sample_rate_hz)
            for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
                target.mux(packet)
    return [tick / ticks_hz for tick in pts]


def _intact_frames(
    container: av.container.InputContainer, stream: av.VideoStream, source: Path
) -> Iterator[TimedFrame]:
    """Yield every frame of a clip.

    Raises:
        DecodeError: at the first frame that is damaged or missing.
    """
    previous_s, found = 0.0, False
    for shown in timed_frames(container, stream):
        if isinstance(shown, TruncatedEnd) or shown.problem:
            raise DecodeError.about(source, f"does not decode after {previous_s:.3f} s: {shown.problem}")
        previous_s, found = shown.time_s, True
        yield shown
    if not found:
        raise DecodeError.about(source, "no timestamps, or no frame decodes")


def _add_video(
    target: av.container.OutputContainer, size: tuple[int, int], ticks_hz: int, settings: CompactSettings
) -> av.VideoStream:
    video = target.add_stream("libx264")
    video.height, video.width = size
    video.pix_fmt = "yuv420p"
    video.codec_context.time_base = Fraction(1, ticks_hz)
    video.options = {
        "preset": settings.preset,
        "crf": str(settings.crf),
        "g": str(settings.key_frame_every),
        "bf": "0",
        # Key frames at the given distance only; and x264's lookahead differs from run to run (see synthetic/render.py).
        "x264-params": "scenecut=0:mbtree=0:rc-lookahead=0",
    }
    video.thread_count = 1
    return video


def _audio_packets(
    stream: av.AudioStream, waveform: np.ndarray, first: int, sample_rate_hz: int
) -> list[av.Packet[av.stream.Stream]]:
    frame = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate_hz, first, Fraction(1, sample_rate_hz)
    return [*stream.encode(frame), *stream.encode()]


def _encode_flac(buffer: io.BytesIO, waveform: np.ndarray, sample_rate_hz: int) -> None:
    with av.open(buffer, "w", format="flac") as target:
        stream = target.add_stream("flac", rate=sample_rate_hz, layout="mono")
        for packet in _audio_packets(stream, waveform, 0, sample_rate_hz):
            target.mux(packet)


def ticks_of(time_base: Fraction | None) -> int:
    """Return the time base of a copy in Hz.

    Args:
        time_base: of the source, in seconds.

    Returns:
        A multiple of the source's time base, if possible.
    """
    own_hz = time_base.denominator if time_base else FINE_TICKS_HZ
    return own_hz * math.ceil(FINE_TICKS_HZ / own_hz) if own_hz <= MAX_TICKS_HZ else FINE_TICKS_HZ


def _movie_ticks(ticks_hz: int, sample_rate_hz: int) -> int:
    """Return the mp4's movie_timescale in Hz.

    If possible, it is exact for the starts of both streams.
    """
    both = math.lcm(ticks_hz, sample_rate_hz)
    return both if both <= MAX_MOVIE_TICKS_HZ else ticks_hz


def copy_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """Return height and width of a copy.

    Both are even. A clip is never enlarged, apart from rounding to even numbers.
    """
    scale = min(1.0, short_side_px / min(height, width))
    even_height, even_width = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
    return even_height, even_width


def _check_copy(source: Path, copy: Path, times_s: list[float], *, first: int, num_samples: int) -> None:
    """Read a copy back and compare frame times and sample positions."""
    problem = ""
    with open_media(copy) as container:
        video = choose_stream(container, copy, "video")
        found = [] if video is None else [shown.time_s for shown in timed_frames(container, video)]
    if len(found) != len(times_s):
        problem = f"{len(found)} frames of {len(times_s)}"
    elif times_s and np.abs(np.subtract(found, times_s)).max() > SAME_TIME_S:
        problem = f"frames up to {np.abs(np.subtract(found, times_s)).max():.6f} s from their times"
    with open_media(copy) as container:
        audio = choose_stream(container, copy, "audio")
        pieces = [] if audio is None else [(p.first, p.end) for p in chunks(container, audio, copy) if p.num_samples]
    span = (pieces[0][0], pieces[-1][1]) if pieces else (first, first)
    if span != (first, first + num_samples):
        problem = problem or f"audio from sample {span[0]} to {span[1]}, not {first} to {first + num_samples}"
    if problem:
        raise DecodeError.about(source, f"the copy does not decode to what was encoded: {problem}")


COMPACT_VERSION = 1  # increase it when the same settings give other copies
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class CompactSettings:
    """Size and quality of a compact copy.

    A clip with smaller frames keeps its size.

    Attributes:
        short_side_px: shorter side of the frames. 128 is what an evaluation at 112 px uses of a clip (112 / 0.875,
            section 3 of the paper). Pretraining cuts crops of 8 % of the frame and more from ``views.video.canvas_px``:
            256 keeps all that the paper's views can contain, and decodes half as fast.
        key_frame_every: frames from one key frame to the next; 12 made decoding 2.3 times as fast as 250 (measured).
        crf: x264's constant quality, lower is better (ours: see crisscross/data/README.md).
        preset: x264's trade of encoding time for space; the decoder is not affected (ours).
        sample_rate_hz: of the audio (16,000 in the paper).

    Raises:
        ValueError: if a value is outside its range.
    """

    short_side_px: int = 128
    key_frame_every: int = 12
    crf: int = 20
    preset: str = "veryfast"
    sample_rate_hz: int = 16_000

    def __post_init__(self) -> None:
        checks = [
            ("short_side_px", 16 <= self.short_side_px <= 2160 and self.short_side_px % 2 == 0, "even, 16 to 2160"),
            ("key_frame_every", 1 <= self.key_frame_every <= 600, "1 to 600"),
            ("crf", 0 <= self.crf <= 51, "0 to 51"),
            ("preset", self.preset in PRESETS, ", ".join(PRESETS)),
            ("sample_rate_hz", 8_000 <= self.sample_rate_hz <= 48_000, "8000 to 48000"),
        ]
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"compact copy: got {name}={getattr(self, name)}; allowed: {allowed}")

    def as_json(self) -> dict[str, Any]:
        """Return settings and version as plain JSON.

        The result is equal for all clips of a copy.
        """
        return {"compact_version": COMPACT_VERSION, **asdict(self)}
