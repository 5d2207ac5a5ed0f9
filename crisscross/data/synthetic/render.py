"""Render and encode one synthetic clip."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from crisscross.data.synthetic import scenes
from crisscross.data.synthetic.scenes import SAMPLE_RATE_HZ
from crisscross.data.synthetic.spec import CLASSES, SyntheticClip, SyntheticSettings
from crisscross.utils.rng import generator

_KEYFRAME_EVERY = 8  # ours: a short group of pictures makes seeking, hence training, fast


def render_clip(clip: SyntheticClip, settings: SyntheticSettings) -> tuple[np.ndarray, np.ndarray]:
    """Render the frames and audio of a clip.

    They depend only on its name and the settings.

    Returns:
        Frames, ``uint8`` of shape (T, H, W, 3), and waveform, ``float32`` of shape (S,) at 16 kHz within [-1, 1].
    """
    kind = CLASSES[clip.class_index]
    clock = scenes.draw_clock(_random(clip, settings.seed, "clock"))
    frames = scenes.render_frames(
        kind,
        clock,
        num_frames=round(settings.seconds * settings.frame_rate_hz),
        frame_rate_hz=settings.frame_rate_hz,
        size_px=settings.frame_size_px,
        rng=_random(clip, settings.seed, "picture"),
    )
    num_samples = round(settings.seconds * SAMPLE_RATE_HZ)
    wave = scenes.render_sound(kind, clock, num_samples=num_samples, rng=_random(clip, settings.seed, "sound"))
    return frames, wave


def encode_mp4(frames: np.ndarray, wave: np.ndarray, *, frame_rate_hz: int) -> bytes:
    """Encode a clip as an mp4 file.

    The file has H.264 video and mono AAC audio.

    Args:
        frames: ``uint8``, shape (T, H, W, 3), RGB, even H and W.
        wave: ``float32``, shape (S,), at 16 kHz within [-1, 1].
        frame_rate_hz: frames per second.

    Returns:
        The content of the file.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=frame_rate_hz)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.options = {
            "preset": "veryfast",
            "crf": "20",
            "g": str(_KEYFRAME_EVERY),
            "bf": "0",
            # x264's macroblock tree reads uninitialized memory: one of 50 clips differed from run to run.
            "x264-params": "mbtree=0:rc-lookahead=0",
        }
        video.thread_count = 1
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        audio.bit_rate = 64_000
        audio.options = {"aac_coder": "fast"}  # a third of the time, as accurate at this rate
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, frame_rate_hz)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE_HZ, 0, Fraction(1, SAMPLE_RATE_HZ)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return buffer.getvalue()


def _random(clip: SyntheticClip, seed: int, purpose: str) -> np.random.Generator:
    """Return a generator that no other clip and no other purpose shares."""
    return generator(seed, f"toy/{clip.split}/{purpose}", clip.class_index, clip.index)
