"""Audio transforms against librosa, torch and NumPy on single clips, and their invariances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from crisscross.transforms import resample
from crisscross.transforms.audio import (
    AudioTransformSettings,
    apply_audio,
    augment_audio,
    eval_transform_audio,
    log_spectrogram,
    mask_out_,
    resize_crop,
    sample_audio_params,
    time_warp,
)
from crisscross.utils.rng import sample_keys
from tests.support import needs_cuda

PAPER = AudioTransformSettings()
WARPED = AudioTransformSettings(time_warp_frames=20)
OFF = AudioTransformSettings(
    volume_min=1,
    volume_max=1,
    num_frequency_masks=0,
    num_time_masks=0,
    resize_crop_probability=0,
)
LINEAR = AudioTransformSettings(
    sample_rate_hz=24000,
    n_fft=512,
    hop_samples=240,
    num_mels=None,
    f_max_hz=12000.0,
    frequency_mask_max_bins=29,
    mean=-7.0,
    std=5.5,
)


def waves(num_clips: int = 10, seconds: float = 2.0) -> torch.Tensor:
    """Return chirps of varying loudness with faint noise."""
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(round(16000 * seconds)) / 16000
    pitch = 100 + 2000 * torch.rand(num_clips, 1, generator=generator)
    loudness = 0.5 * torch.sin(2 * torch.pi * 0.7 * time_s + pitch) ** 2
    noise = 1e-3 * torch.randn(num_clips, len(time_s), generator=generator)
    return loudness * torch.sin(2 * torch.pi * (pitch * time_s + 300 * time_s**2)) + noise


def keys_of(num_clips: int) -> np.ndarray:
    return sample_keys(3, "audio/view0", 5, np.arange(num_clips))


def spectrograms(num_clips: int = 6) -> torch.Tensor:
    return torch.randn(num_clips, 1, 80, 201, generator=torch.Generator().manual_seed(1))


def power_spectrum(wave: np.ndarray, n_fft: int, hop_samples: int) -> np.ndarray:
    """Return |STFT|^2 of a clip, (n_fft / 2 + 1, frames), by a plain Fourier transform in double precision."""
    window = np.hanning(n_fft + 1)[:n_fft]  # the periodic Hann window
    padded = np.pad(wave.astype(np.float64), n_fft // 2)
    starts = range(0, len(wave) + 1, hop_samples)
    frames = np.stack([padded[start : start + n_fft] for start in starts])
    return np.abs(np.fft.rfft(frames * window, axis=1)).T ** 2


def expected_log_mel(wave: np.ndarray, settings: AudioTransformSettings) -> np.ndarray:
    from librosa.filters import mel as librosa_mel  # here: it adds a second to every worker's start

    bands = librosa_mel(
        sr=settings.sample_rate_hz,
        n_fft=settings.n_fft,
        n_mels=settings.num_mels,
        fmin=settings.f_min_hz,
        fmax=settings.f_max_hz,
    )
    mel = bands @ power_spectrum(wave, settings.n_fft, settings.hop_samples)
    return (np.log(mel + np.finfo(np.float32).eps) - settings.mean) / settings.std


# The spectrogram.


@pytest.mark.parametrize(
    "settings",
    [PAPER, AudioTransformSettings(n_fft=512, hop_samples=200, num_mels=40, f_min_hz=50.0, f_max_hz=6000.0)],
    ids=["paper", "other"],
)
def test_log_mel_equals_librosas_filters_on_a_plain_fourier_transform(settings):
    wave = waves(4)
    got = log_spectrogram(wave, settings)
    for clip, result in zip(wave.numpy(), got[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(result, expected_log_mel(clip, settings), atol=1e-4)


def test_two_seconds_give_80_by_201():
    assert log_spectrogram(waves(3), PAPER).shape == (3, 1, 80, 201)
    assert log_spectrogram(waves(1, 5.0), PAPER).shape == (1, 1, 80, 501)
    assert log_spectrogram(waves(1, 0.03), PAPER).shape == (1, 1, 80, 4)  # shorter than one window


def test_linear_bins_equal_a_plain_fourier_transform():
    wave = waves(3, 3.0)[:, :48000]  # 2 s at 24 kHz
    got = log_spectrogram(wave, LINEAR)
    assert got.shape == (3, 1, 257, 201)
    for clip, result in zip(wave.numpy(), got[:, 0].numpy(), strict=True):
        power = power_spectrum(clip, 512, 240)
        np.testing.assert_allclose(result, (np.log(power + 2.0**-23) + 7.0) / 5.5, atol=1e-3)
    spectrum = torch.stft(wave[0], 512, 240, window=torch.hann_window(512), pad_mode="constant", return_complex=True)
    expected = ((spectrum.abs() ** 2 + 2.0**-23).log() + 7.0) / 5.5
    torch.testing.assert_close(got[0, 0], expected, atol=1e-4, rtol=0)


def test_linear_bins_are_augmented_like_mel_bands():
    draws = sample_audio_params(keys_of(2000), 201, LINEAR)
    assert draws.canvas == (257, 301)
    assert draws.frequency_masks.sum(2).max() == 257
    result = augment_audio(waves(4, 3.0)[:, :48000], keys_of(4), LINEAR)
    assert result.shape == (4, 1, 257, 201)
    assert torch.isfinite(result).all()


def test_silence_is_finite_and_constant():
    silence = log_spectrogram(torch.zeros(2, 32000), PAPER)
    expected = (np.log(np.finfo(np.float32).eps) - PAPER.mean) / PAPER.std
    torch.testing.assert_close(silence, torch.full_like(silence, expected))
    assert torch.isfinite(augment_audio(torch.zeros(2, 32000), keys_of(2), WARPED)).all()


def test_evaluation_is_the_plain_spectrogram():
    wave = waves(3)
    assert torch.equal(eval_transform_audio(wave, WARPED), log_spectrogram(wave, WARPED))


# The augmentations.


def test_volume_scales_the_wave():
    settings = dataclasses.replace(OFF, volume_min=0.8, volume_max=1.2)
    wave, draws = waves(6), sample_audio_params(keys_of(6), 201, settings)
    expected = log_spectrogram(wave * torch.from_numpy(draws.volume).float()[:, None], settings)
    assert torch.equal(augment_audio(wave, keys_of(6), settings), expected)


def test_masks_set_whole_bins_and_frames_to_the_mean():
    x = spectrograms(2)
    frequency = np.array([[[3, 4], [70, 10]], [[0, 0], [5, 1]]])
    time = np.array([[[0, 19], [10, 5]], [[182, 19], [201, 0]]])
    expected = x.clone()
    expected[0, :, 3:7], expected[0, :, 70:80], expected[1, :, 5:6] = 0, 0, 0
    expected[0, ..., 0:19], expected[1, ..., 182:201] = 0, 0
    assert torch.equal(mask_out_(x.clone(), frequency, time), expected)


def test_resize_crop_equals_pasting_on_a_canvas_cropping_and_resizing():
    x = spectrograms(6)
    boxes = np.array(
        [[0, 0, 80, 301], [10, 0, 48, 120], [0, 181, 80, 120], [5, 33, 60, 201], [20, 100, 60, 150], [0, 50, 80, 201]]
    )
    got = resize_crop(x, boxes, (80, 301))
    canvas = torch.nn.functional.pad(x, (50, 50))
    for clip, box, result in zip(canvas, boxes.tolist(), got, strict=True):
        expected = F.resized_crop(clip, *box, [80, 201], interpolation=InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(got[5], x[5], atol=0, rtol=0)  # the box of the spectrogram itself


def test_resize_crop_on_a_canvas_larger_in_frequency_too():
    x = spectrograms(1)
    boxes = np.array([[0, 0, 96, 301]])
    canvas = torch.nn.functional.pad(x, (50, 50, 8, 8))
    expected = F.resize(canvas, [80, 201], interpolation=InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(resize_crop(x, boxes, (96, 301)), expected, atol=2e-4, rtol=0)


def test_time_warp_equals_resizing_both_sides():
    x = spectrograms(5)
    warps = np.array([[100, 100], [20, 39], [181, 162], [77, 60], [90, 109]])
    got = time_warp(x, warps)
    for clip, (center, moved), result in zip(x, warps.tolist(), got, strict=True):
        sides = (clip[..., :center], moved), (clip[..., center:], 201 - moved)
        expected = torch.cat(
            [F.resize(side, [80, width], InterpolationMode.BICUBIC, antialias=True) for side, width in sides], -1
        )
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(got[0], x[0], atol=1e-6, rtol=0)


# The parameters.


def test_draws_have_the_papers_ranges():
    draws = sample_audio_params(keys_of(20000), 201, WARPED)
    np.testing.assert_allclose([draws.volume.min(), draws.volume.max()], [0.8, 1.2], atol=1e-3)
    for masks, longest, length in ((draws.frequency_masks, 9, 80), (draws.time_masks, 19, 201)):
        assert masks.shape == (20000, 2, 2)
        start, extent = masks[..., 0], masks[..., 1]
        assert set(extent.ravel()) == set(range(longest + 1))
        assert start.min() == 0
        assert (start + extent).max() == length
        assert abs(np.corrcoef(extent.T)[0, 1]) < 0.03
    assert draws.canvas == (80, 301)
    top, left, height, width = draws.boxes.T
    assert (height.min(), height.max(), width.min(), width.max()) == (48, 80, 120, 301)
    assert top.min() == left.min() == 0
    assert (top + height).max() == 80
    assert (left + width).max() == 301
    center, moved = draws.warps.T
    assert (center.min(), center.max()) == (20, 181)
    assert (moved.min(), moved.max()) == (1, 200)
    assert np.abs(moved - center).max() == 19


def test_a_clip_shorter_than_masks_and_window_still_works():
    result = augment_audio(waves(4, 0.1), keys_of(4), WARPED)
    assert result.shape == (4, 1, 80, 11)
    assert torch.isfinite(result).all()
    assert torch.isfinite(augment_audio(waves(4, 0.005), keys_of(4), WARPED)).all()  # one frame


@pytest.mark.parametrize(
    "on",
    [
        {"volume_min": 0.8, "volume_max": 1.2},
        {"num_frequency_masks": 2},
        {"num_time_masks": 2},
        {"resize_crop_probability": 1.0},
        {"resize_crop_probability": 0.5},
        {"time_warp_frames": 20},
    ],
    ids=lambda on: "-".join(f"{name}={value}" for name, value in on.items()),
)
def test_each_augmentation_alone_changes_clips_by_key(on):
    same = waves(1).expand(24, -1)
    plain, keys = log_spectrogram(same, OFF), keys_of(24)
    result = augment_audio(same, keys, dataclasses.replace(OFF, **on))
    changed = (result - plain).abs().amax((1, 2, 3)) > 1e-3
    if on == {"resize_crop_probability": 0.5}:
        assert 4 < changed.sum() < 20
        torch.testing.assert_close(result[~changed], plain[~changed], atol=1e-5, rtol=0)
    else:
        assert changed.sum() >= 20
    assert len({round(value, 5) for value in result.mean((1, 2, 3)).tolist()}) > 10


def test_everything_off_is_the_evaluation():
    wave = waves(4)
    assert torch.equal(augment_audio(wave, keys_of(4), OFF), eval_transform_audio(wave, OFF))
    no_size = dataclasses.replace(
        OFF, num_frequency_masks=2, num_time_masks=2, frequency_mask_max_bins=0, time_mask_max_frames=0
    )
    assert torch.equal(augment_audio(wave, keys_of(4), no_size), eval_transform_audio(wave, OFF))


# Invariances.


def test_neither_order_nor_batch_size_nor_composition_matters():
    wave, keys = waves(10), keys_of(10)
    whole = augment_audio(wave, keys, WARPED)
    order = np.random.default_rng(0).permutation(10)
    assert torch.equal(augment_audio(wave[order], keys[order], WARPED), whole[order])
    for size in (1, 2, 5, 7):
        assert torch.equal(augment_audio(wave[:size], keys[:size], WARPED), whole[:size])
        assert torch.equal(eval_transform_audio(wave[:size], PAPER), eval_transform_audio(wave, PAPER)[:size])
    others, other_keys = torch.flip(wave, [0]), keys[::-1].copy()
    others[3], other_keys[3] = wave[3], keys[3]
    assert torch.equal(augment_audio(others, other_keys, WARPED)[3], whole[3])


def test_how_a_batch_is_split_for_the_cache_does_not_matter(monkeypatch):
    wave, keys = waves(9), keys_of(9)
    whole = augment_audio(wave, keys, WARPED)
    for num_bytes in (1, 2_000_000, 2**40):
        monkeypatch.setattr(resample, "_CPU_PART_BYTES", num_bytes)
        assert torch.equal(augment_audio(wave, keys, WARPED), whole)


def test_the_input_does_not_change_and_autocast_has_no_effect():
    wave = waves(4)
    before = wave.clone()
    expected = augment_audio(wave, keys_of(4), WARPED)
    assert torch.equal(wave, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment_audio(wave, keys_of(4), WARPED), expected)
    draws = sample_audio_params(keys_of(4), 201, WARPED)
    assert torch.equal(apply_audio(wave, draws, WARPED), expected)


def test_tables_made_in_inference_mode_serve_training_too():
    settings = AudioTransformSettings(num_mels=33, frequency_mask_max_bins=3)
    with torch.inference_mode():
        log_spectrogram(waves(1), settings)
    wave = waves(1).requires_grad_()
    log_spectrogram(wave, settings).sum().backward()
    assert torch.isfinite(wave.grad).all()


# Errors.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"f_max_hz": 9000.0}, r"f_max_hz got 9000.0; expected above f_min_hz \(0.0\), at most half of sample_rate_hz"),
        ({"volume_min": 1.3}, "volume_min got 1.3; expected 0 <= min <= max"),
        ({"num_mels": 8}, r"frequency_mask_max_bins got 9; expected 0 to num_mels \(8\)"),
        ({"num_mels": 0}, "num_mels got 0; expected above 0, or null for linear bins"),
        (
            {"num_mels": None, "f_max_hz": 7000.0},
            "f_max_hz got 7000.0; expected 8000.0, as num_mels is null",
        ),
        ({"num_mels": None, "f_min_hz": 50.0}, "f_min_hz got 50.0; expected 0, as num_mels is null: all linear bins"),
        ({"num_mels": None, "frequency_mask_max_bins": 514}, r"expected 0 to n_fft // 2 \+ 1 \(513\)"),
        ({"canvas_time": 0.5}, "canvas_time got 0.5; expected at least 1"),
        ({"time_warp_frames": -1}, "time_warp_frames got -1; expected 0 or more: correct time_warp_frames"),
        ({"resize_crop_probability": 2}, "resize_crop_probability got 2; expected a number from 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message) as error:
        AudioTransformSettings(**values)
    assert "\n" not in str(error.value)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"wave got torch.float32 \(2, 1, 100\); expected float samples \(B, S\)"):
        log_spectrogram(torch.zeros(2, 1, 100), PAPER)
    with pytest.raises(ValueError, match=r"wave got torch.int16 \(2, 100\)"):
        log_spectrogram(torch.zeros(2, 100, dtype=torch.int16), PAPER)
    with pytest.raises(ValueError, match=r"keys got shape \(3,\) for waves \(2, 32000\); expected one key per wave"):
        augment_audio(waves(2), keys_of(3), PAPER)


@needs_cuda
def test_cuda_equals_cpu_and_ignores_the_batch():
    wave, keys = waves(10), keys_of(10)
    got = augment_audio(wave.cuda(), keys, WARPED)
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), augment_audio(wave, keys, WARPED), atol=1e-3, rtol=0)
    # The kernel of a matrix product may depend on the batch size.
    torch.testing.assert_close(augment_audio(wave[:3].cuda(), keys[:3], WARPED), got[:3], atol=1e-4, rtol=0)
