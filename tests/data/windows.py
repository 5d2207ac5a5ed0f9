"""Windows of one stream alone, for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crisscross.data.media.decode import decode_windows

RATE_HZ = 16000


def decode_video(path: Path, starts_s, *, num_frames=8, frame_rate_hz=16.0, canvas=None) -> np.ndarray:
    video, audio = decode_windows(
        path,
        video_starts_s=starts_s,
        num_frames=num_frames,
        frame_rate_hz=frame_rate_hz,
        canvas=canvas,
        audio_starts_s=[],
        audio_seconds=1,
        sample_rate_hz=RATE_HZ,
    )
    assert audio is None
    return video


def decode_audio(path: Path, starts_s, *, seconds=1.0, sample_rate_hz=RATE_HZ) -> np.ndarray:
    video, audio = decode_windows(
        path,
        video_starts_s=[],
        num_frames=1,
        frame_rate_hz=1,
        canvas=None,
        audio_starts_s=starts_s,
        audio_seconds=seconds,
        sample_rate_hz=sample_rate_hz,
    )
    assert video is None
    return audio


def nearest_numbers(times_s, start_s: float, *, num_frames=8, frame_rate_hz=16.0) -> list[int]:
    """Return the number of the frame nearest to each time, the earlier of two equally near."""
    wanted_s = start_s + np.arange(num_frames) / frame_rate_hz
    return [int(np.argmin(np.abs(np.asarray(times_s) - w).round(6))) for w in wanted_s]
