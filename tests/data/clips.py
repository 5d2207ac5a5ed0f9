"""Small media files of known content: each frame shows its number, the audio is given by sample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_BITS = 10


def numbered_frame(number: int, *, height: int = 48, width: int = 80) -> np.ndarray:
    """Return a gray frame (H, W, 3) whose top half shows a number in white (1) and black (0) bars, low bit left.

    The bottom half is dark gray, so a flip is visible.
    """
    pixels = np.full((height, width, 3), 64, dtype=np.uint8)
    edges = np.linspace(0, width, NUM_BITS + 1).round().astype(int)
    for bit in range(NUM_BITS):
        pixels[: height // 2, edges[bit] : edges[bit + 1]] = 235 if number >> bit & 1 else 16
    return pixels


def read_number(pixels: np.ndarray) -> int:
    """Return the number that a frame (H, W, 3) of any size shows."""
    height, width = pixels.shape[:2]
    row = pixels[height // 8 : height * 3 // 8].mean(axis=(0, 2))
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    return sum(1 << bit for bit, centre in enumerate(centres) if row[centre] > 128)


def read_numbers(video: np.ndarray) -> np.ndarray:
    """Return the numbers that frames (..., H, W, 3) show, in the shape of their leading axes."""
    flat = video.reshape(-1, *video.shape[-3:])
    return np.array([read_number(pixels) for pixels in flat]).reshape(video.shape[:-3])


def even_times_s(num_frames: int, frame_rate_hz: float, *, start_s: float = 0.0) -> np.ndarray:
    """Return the times of frames at a constant rate."""
    return start_s + np.arange(num_frames) / frame_rate_hz


def tone(frequency_hz: float, seconds: float, sample_rate_hz: int, *, level: float = 0.5) -> np.ndarray:
    """Return a mono sine (1, samples) whose phase is 0 at its first sample."""
    times_s = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    return (level * np.sin(2 * np.pi * frequency_hz * times_s)).astype(np.float32)[None]


def impulses(at_s: Sequence[float], seconds: float, sample_rate_hz: int) -> np.ndarray:
    """Return mono silence (1, samples) with single full samples at the given times."""
    waveform = np.zeros((1, round(seconds * sample_rate_hz)), dtype=np.float32)
    waveform[0, [round(time_s * sample_rate_hz) for time_s in at_s]] = 0.9
    return waveform


def write_clip(
    path: Path,
    *,
    times_s: Sequence[float] | None = None,
    waveform: np.ndarray | None = None,
    sample_rate_hz: int = 44100,
    audio_start_s: float = 0.0,
    height: int = 48,
    width: int = 80,
    video_codec: str = "libx264",
    video_options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    full_range: bool = False,
    pixel_aspect: Fraction | None = None,
    rotation: int = 0,
    key_frame_every: int = 12,
    ticks_per_s: int = 12800,
    audio_codec: str = "aac",
    layout: str | None = None,
) -> Path:
    """Write a clip and return its path; the container is chosen by the suffix.

    Args:
        path: the file to write.
        times_s: time of each frame in seconds; frame k shows the number k. None writes no video stream.
        waveform: (channels, samples) float32 in -1 to 1. None writes no audio stream.
        sample_rate_hz: of the audio.
        audio_start_s: time of its first sample.
        height: of the stored frames.
        width: of the stored frames.
        video_codec: the encoder.
        video_options: for the encoder, such as ``{"bf": "3"}``.
        pixel_format: of the stored frames.
        full_range: whether to store luma 0 to 255 instead of 16 to 235.
        pixel_aspect: width over height of a stored pixel.
        rotation: degrees counter-clockwise by which a player rotates the frame.
        key_frame_every: frames from one key frame to the next.
        ticks_per_s: the resolution of times; MPEG-1 needs 25, its frame rate.
        audio_codec: the encoder.
        layout: such as ``"5.1"``; None means mono or stereo.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path.absolute()), "w") as container:
        packets = []
        video = audio = None
        if times_s is not None:
            video = container.add_stream(video_codec, rate=25, options=video_options or {})
            video.width, video.height, video.pix_fmt = width, height, pixel_format
            video.codec_context.time_base = Fraction(1, ticks_per_s)
            video.gop_size = key_frame_every
            if full_range:
                video.codec_context.color_range = 2
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                video.set_display_rotation(rotation)
        if waveform is not None:
            names = {1: "mono", 2: "stereo"}
            layout = layout or names[len(waveform)]
            audio = container.add_stream(audio_codec, rate=sample_rate_hz, layout=layout)
            packets += _audio_packets(audio, waveform, sample_rate_hz, layout, audio_start_s)
        if video is not None:
            packets += _video_packets(video, times_s, full_range, ticks_per_s)
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            container.mux(packet)
    return path


def _video_packets(
    stream: av.VideoStream, times_s: Sequence[float], full_range: bool, ticks_per_s: int
) -> list[av.Packet]:
    packets = []
    for number, time_s in enumerate(times_s):
        pixels = numbered_frame(number, height=stream.height, width=stream.width)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format=stream.pix_fmt, dst_color_range=2 if full_range else 1)
        frame.pts, frame.time_base = round(time_s * ticks_per_s), Fraction(1, ticks_per_s)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _audio_packets(
    stream: av.AudioStream, waveform: np.ndarray, sample_rate_hz: int, layout: str, start_s: float
) -> list[av.Packet]:
    packets, block = [], 1024
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=sample_rate_hz)
    for first in range(0, waveform.shape[1], block):
        piece = np.ascontiguousarray(waveform[:, first : first + block])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = sample_rate_hz, Fraction(1, sample_rate_hz)
        frame.pts = round(start_s * sample_rate_hz) + first
        for converted in resampler.resample(frame):
            packets += stream.encode(converted)
    return packets + stream.encode(None)
