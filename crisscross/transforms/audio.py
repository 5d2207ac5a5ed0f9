"""Log spectrograms, mel or linear, and their batched augmentation on the batch's device.

As in ``video.py``, the parameters of a clip's augmentation depend only on its key (as in the paper); they are drawn
in NumPy on the CPU and applied by tensor operations without a loop over clips. Spectrograms are normalized first, so
that the fill value 0 is the data's mean.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
import torchaudio  # type: ignore[import-untyped]
from torch import Tensor

from crisscross.config.views import AudioTransformSettings, refuse
from crisscross.transforms.resample import apply_matrices, box_matrices, filter_matrices, parts
from crisscross.utils.rng import uniforms


@dataclasses.dataclass(frozen=True)
class AudioParams:
    """Augmentation parameters of a batch of clips.

    NumPy arrays with one row per clip. ``volume`` (B,) is a factor. Masks (B, number, 2) are start and length, in bins
    or frames. ``boxes`` (B, 4) are top, left, height, width in pixels of the canvas, whose size is ``canvas``.
    ``warps`` (B, 2) are the frame that moves and its new position.
    """

    volume: np.ndarray
    frequency_masks: np.ndarray
    time_masks: np.ndarray
    boxes: np.ndarray
    warps: np.ndarray
    canvas: tuple[int, int]

    def rows(self, wanted: slice) -> AudioParams:
        """Return the parameters of some of the clips."""
        return AudioParams(
            self.volume[wanted],
            self.frequency_masks[wanted],
            self.time_masks[wanted],
            self.boxes[wanted],
            self.warps[wanted],
            self.canvas,
        )


def log_spectrogram(wave: Tensor, settings: AudioTransformSettings) -> Tensor:
    """Return normalized log power spectrograms (as in the paper).

    Equal to librosa's ``melspectrogram`` with its defaults (Hann window, centered frames, zero padding, Slaney mel
    scale and norm), then ``log(power + log_offset)``, minus ``mean``, divided by ``std``. With ``num_mels=None``, the
    bins of the FFT are used instead of mel bands. Silence gives a finite number.

    Args:
        wave: float, shape (B, S): mono samples at ``sample_rate_hz``, in [-1, 1].
        settings: sample rate, window, bands and normalization.

    Returns:
        Float32, shape (B, 1, num_bins, 1 + S // hop_samples): 80 x 201 for 2 s.

    Raises:
        ValueError: if ``wave`` is not a batch of float samples.
    """
    if wave.ndim != 2 or not wave.is_floating_point() or wave.shape[1] == 0:
        refuse("wave", f"{wave.dtype} {tuple(wave.shape)}", "float samples (B, S), S above 0")
    window, filters = _tables(
        settings.sample_rate_hz,
        settings.n_fft,
        settings.num_mels,
        settings.f_min_hz,
        settings.f_max_hz,
        wave.device,
    )
    log_power = [_log_power(wave[part].float(), window, filters, settings) for part in _parts(wave, settings)]
    return torch.cat(log_power).sub_(settings.mean).div_(settings.std)[:, None]


def _log_power(wave: Tensor, window: Tensor, filters: Tensor | None, settings: AudioTransformSettings) -> Tensor:
    # Under autocast, the product with the filter bank would have 16 bits.
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = torch.stft(
            wave,
            settings.n_fft,
            settings.hop_samples,
            window=window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        # torchaudio's spectrogram takes a root and squares it again, which costs four times the FFT.
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        if filters is not None:
            # One product per clip: the rounding of one product for the batch would depend on the batch size.
            power = torch.bmm(filters.expand(len(power), -1, -1), power)
    return power.add_(settings.log_offset).log_()


def eval_transform_audio(wave: Tensor, settings: AudioTransformSettings) -> Tensor:
    """Return the spectrograms without augmentation; see ``log_spectrogram``."""
    return log_spectrogram(wave, settings)


def augment_audio(wave: Tensor, keys: np.ndarray, settings: AudioTransformSettings) -> Tensor:
    """Augment a batch of waves for pretraining (as in the paper).

    Args:
        wave: float, shape (B, S), as in ``log_spectrogram``.
        keys: uint64, shape (B,), from ``crisscross.utils.rng.sample_keys``.
        settings: strengths and probabilities of the augmentations, and the spectrogram's settings.

    Returns:
        Float32, shape (B, 1, num_bins, frames), normalized, on the device of ``wave``.

    Raises:
        ValueError: if an argument has a wrong shape or type.
    """
    if wave.ndim != 2 or np.shape(keys) != (len(wave),):
        refuse("keys", f"shape {np.shape(keys)} for waves {tuple(wave.shape)}", "one key per wave (B, S)")
    num_frames = 1 + wave.shape[1] // settings.hop_samples
    return apply_audio(wave, sample_audio_params(keys, num_frames, settings), settings)


def sample_audio_params(keys: np.ndarray, num_frames: int, settings: AudioTransformSettings) -> AudioParams:
    """Draw the random parameters of a batch.

    Row b depends only on ``keys[b]``, ``num_frames`` and the settings.
    """
    volume = uniforms(keys, "audio/volume", 1)[:, 0]
    size = np.array([settings.num_bins, num_frames])
    canvas = np.floor(size * [settings.canvas_frequency, settings.canvas_time])
    draw = uniforms(keys, "audio/resize_crop", 5)
    low = np.array([settings.frequency_scale_min, settings.time_scale_min])
    high = np.array([settings.frequency_scale_max, settings.time_scale_max])
    crop = np.clip(np.floor((low + draw[:, :2] * (high - low)) * size), 1, canvas)
    corner = np.floor(draw[:, 2:4] * (canvas - crop + 1))
    boxes = np.concatenate([corner, crop], axis=1)
    unchanged = np.concatenate([np.floor((canvas - size) / 2), size])
    return AudioParams(
        volume=settings.volume_min + volume * (settings.volume_max - settings.volume_min),
        frequency_masks=_masks(
            uniforms(keys, "audio/frequency_masks", 2 * settings.num_frequency_masks),
            settings.frequency_mask_max_bins,
            settings.num_bins,
        ),
        time_masks=_masks(
            uniforms(keys, "audio/time_masks", 2 * settings.num_time_masks),
            settings.time_mask_max_frames,
            num_frames,
        ),
        boxes=np.where(draw[:, 4:] < settings.resize_crop_probability, boxes, unchanged),
        warps=_warps(uniforms(keys, "audio/time_warp", 2), settings.time_warp_frames, num_frames),
        canvas=(int(canvas[0]), int(canvas[1])),
    )


def apply_audio(wave: Tensor, params: AudioParams, settings: AudioTransformSettings) -> Tensor:
    """Apply sampled parameters to a batch of waves.

    The order is volume, log spectrogram, time warp, masks, resize-crop. Arguments and result as in ``augment_audio``.
    """
    return torch.cat([_apply_part(wave[part], params.rows(part), settings) for part in _parts(wave, settings)])


def _apply_part(wave: Tensor, params: AudioParams, settings: AudioTransformSettings) -> Tensor:
    x = log_spectrogram(wave * _rows(params.volume, wave), settings)
    if settings.time_warp_frames > 0:
        x = time_warp(x, params.warps)
    x = mask_out_(x, params.frequency_masks, params.time_masks)
    if settings.resize_crop_probability > 0:
        x = resize_crop(x, params.boxes, params.canvas)
    return x


def time_warp(x: Tensor, warps: np.ndarray) -> Tensor:
    """Move one frame of each spectrogram and stretch both sides.

    Args:
        x: spectrograms (B, 1, F, T).
        warps: shape (B, 2): frame ``c`` moves to ``d``; both from 1 to T - 1. The first ``c`` frames are resized
            (bicubic) to ``d``, the others to T - ``d``, as is common for SpecAugment's warp (Park et al., 2019).

    Returns:
        Spectrograms of the same shape.
    """
    num_frames = x.shape[-1]
    center, moved = (_rows(warps[:, column], x) for column in range(2))
    places = torch.arange(num_frames, device=x.device) + 0.5
    left = places < moved
    scale = torch.where(left, center / moved, (num_frames - center) / (num_frames - moved))
    read = torch.where(left, places * scale, center + (places - moved) * scale)
    lower, upper = torch.where(left, 0.0, center), torch.where(left, center, float(num_frames))
    matrices = filter_matrices(read, scale, lower, upper, num_frames, filter="bicubic")
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(x[:, 0], matrices.transpose(1, 2))[:, None]


def mask_out_(x: Tensor, frequency_masks: np.ndarray, time_masks: np.ndarray) -> Tensor:
    """Set ranges of bins and frames to 0, in place.

    ``x`` holds spectrograms of shape (B, 1, F, T); 0 is their mean.
    """
    keep_bins = _outside(frequency_masks, x.shape[-2], x)
    keep_frames = _outside(time_masks, x.shape[-1], x)
    return x.mul_(keep_bins[:, None, :, None]).mul_(keep_frames[:, None, None, :])


def resize_crop(x: Tensor, boxes: np.ndarray, canvas: tuple[int, int]) -> Tensor:
    """Crop a box from each spectrogram and resize it bicubically.

    The spectrogram is in the middle of a canvas of zeros, so a crop may be shifted and have a border. This is the
    random resize-crop of BYOL-A (Niizumi et al., 2021). If a box is larger than the result, the filter is widened
    (ours: otherwise frames would be skipped).

    Args:
        x: spectrograms (B, 1, F, T).
        boxes: shape (B, 4): top, left, height, width in whole pixels of the canvas.
        canvas: height and width of the canvas, at least F and T.

    Returns:
        Spectrograms of the same shape.
    """
    top, left, height, width = _rows(boxes, x).unbind(1)
    rows = box_matrices(top, height, canvas[0], x.shape[-2], filter="bicubic")
    columns = box_matrices(left, width, canvas[1], x.shape[-1], filter="bicubic")
    # Drop the matrices' columns for the canvas' zeros; the others read the spectrogram itself.
    above, before = ((room - size) // 2 for room, size in zip(canvas, x.shape[-2:], strict=True))
    rows, columns = rows[:, :, above : above + x.shape[-2]], columns[:, :, before : before + x.shape[-1]]
    return apply_matrices(x, rows.contiguous(), columns.contiguous())


def _masks(draw: np.ndarray, longest: int, length: int) -> np.ndarray:
    """Map uniforms to starts and lengths of masks.

    Args:
        draw: uniforms, shape (B, 2 * number).
        longest: largest length of a mask.
        length: number of bins or frames.

    Returns:
        Starts and lengths, shape (B, number, 2).
    """
    draw = draw.reshape(len(draw), draw.shape[1] // 2, 2)
    extent = np.floor(draw[..., 0] * (min(longest, length) + 1))
    return np.stack([np.floor(draw[..., 1] * (length - extent + 1)), extent], axis=2)


def _warps(draw: np.ndarray, window: int, num_frames: int) -> np.ndarray:
    """Draw the frame to move and its new position, (B, 2).

    The frame is at least ``window`` from both ends, the new position less than ``window`` away. For a spectrogram
    shorter than two windows, the window is half its length.
    """
    window = max(1, min(window, num_frames // 2))
    center = window + np.floor(draw[:, 0] * (num_frames - 2 * window + 1))
    moved = center - (window - 1) + np.floor(draw[:, 1] * (2 * window - 1))
    return np.stack([center, moved], axis=1)


def _outside(masks: np.ndarray, length: int, x: Tensor) -> Tensor:
    """Return which positions are outside of all masks.

    Returns:
        Shape (B, length): 0 inside any of the masks (B, number, 2), 1 outside.
    """
    places = np.arange(length)
    start, extent = masks[..., :1], masks[..., 1:]
    return _rows(~((places >= start) & (places < start + extent)).any(1), x, columns=length)


def _rows(values: np.ndarray, x: Tensor, columns: int | None = None) -> Tensor:
    """Return per-clip numbers as a tensor.

    Returns:
        Shape (B, columns), on the device of ``x``.
    """
    rows = torch.from_numpy(values.astype(np.float32)).to(x.device)
    return rows.view(len(values), -1 if columns is None else columns)


@functools.lru_cache(maxsize=8)
def _tables(
    sample_rate_hz: int, n_fft: int, num_mels: int | None, f_min_hz: float, f_max_hz: float, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the window and the mel filters.

    Returns:
        Shapes (n_fft,) and (num_mels, n_fft // 2 + 1); no filters (None) without ``num_mels``.
    """
    # Tensors created in inference mode cannot be used outside it.
    with torch.inference_mode(False):
        window = torch.hann_window(n_fft).to(device)
        if num_mels is None:
            return window, None
        filters = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, f_min_hz, f_max_hz, num_mels, sample_rate_hz, norm="slaney", mel_scale="slaney"
        )
        return window, filters.T.contiguous().to(device)


def _parts(wave: Tensor, settings: AudioTransformSettings) -> list[slice]:
    num_frames = 1 + wave.shape[1] // settings.hop_samples
    return parts(len(wave), 8 * num_frames * (settings.n_fft // 2 + 1), wave.device)
