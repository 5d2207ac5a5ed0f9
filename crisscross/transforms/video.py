"""Batched video augmentation on the batch's device.

The parameters of a clip's augmentation depend only on its key and are the same for all its frames, as in the paper.
``sample_video_params`` draws them in NumPy on the CPU; ``apply_video`` applies them with tensor operations, without a
loop over clips. Clips with the same operation are sorted next to each other, so that an operation works in place on a
slice and costs nothing for clips that it skips.

Colors are floats in [0, 1] and are not rounded to 8 bits between operations.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from crisscross.config.views import VideoTransformSettings, refuse
from crisscross.transforms.color import (
    adjust_brightness_,
    adjust_contrast_,
    adjust_hue_,
    adjust_saturation_,
    cut_out_,
    gaussian_blur,
    to_grayscale_,
)
from crisscross.transforms.resample import parts, resample
from crisscross.utils.rng import uniforms

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _NOTHING = range(5)


@dataclasses.dataclass(frozen=True)
class VideoParams:
    """Augmentation parameters of a batch of clips.

    NumPy arrays with one row per clip. Boxes are top, left, height, width as fractions of the frame. ``jitter_order``
    (B, 4) has the operations in order: 0 brightness, 1 contrast, 2 saturation, 3 hue, 4 none; ``jitter_factors`` (B, 4)
    has the factor of each operation. Cutouts are top, left, side in pixels of the crop; side 0 = no cutout.
    """

    boxes: np.ndarray
    flip: np.ndarray
    jitter_order: np.ndarray
    jitter_factors: np.ndarray
    grayscale: np.ndarray
    blur: np.ndarray
    blur_sigmas_px: np.ndarray
    cutouts_px: np.ndarray

    def rows(self, wanted: slice | np.ndarray) -> VideoParams:
        """Return the parameters of some of the clips."""
        return VideoParams(*(getattr(self, field.name)[wanted] for field in dataclasses.fields(self)))


def augment_video(
    video: Tensor, aspect: Tensor | np.ndarray, keys: np.ndarray, settings: VideoTransformSettings
) -> Tensor:
    """Augment a batch of clips for pretraining (as in the paper).

    Args:
        video: uint8, shape (B, T, Hc, Wc, 3): frames scaled to a common canvas, which may change their aspect ratio.
        aspect: shape (B,): displayed width / height of the sources; used on the CPU.
        keys: uint64, shape (B,), from ``crisscross.utils.rng.sample_keys``.
        settings: strengths and probabilities of the augmentations.

    Returns:
        Float32, shape (B, 3, T, crop_px, crop_px), normalized, on the device of ``video``.

    Raises:
        ValueError: if an argument has a wrong shape or type.
    """
    return apply_video(video, sample_video_params(aspect, keys, settings), settings)


def eval_transform_video(video: Tensor, aspect: Tensor | np.ndarray, settings: VideoTransformSettings) -> Tensor:
    """Resize the short side and crop the center.

    The short side becomes crop_px / 0.875, as in the paper. Both steps are one resampling.

    Args:
        video: as in ``augment_video``.
        aspect: as in ``augment_video``.
        settings: size of the crop, and normalization.

    Returns:
        Float32, shape (B, 3, T, crop_px, crop_px), normalized, on the device of ``video``.

    Raises:
        ValueError: if an argument has a wrong shape or type.
    """
    boxes = center_boxes(_aspects(aspect), settings)
    _check(video, len(boxes))
    crops = [_crop(video[part], boxes[part], None, settings, beyond_box=True) for part in _parts(video)]
    return _normalize_(torch.cat(crops), settings)


def sample_video_params(aspect: Tensor | np.ndarray, keys: np.ndarray, settings: VideoTransformSettings) -> VideoParams:
    """Draw the random parameters of a batch.

    Row b depends only on ``keys[b]``, ``aspect[b]`` and the settings.
    """
    aspect = _aspects(aspect)
    if np.shape(keys) != aspect.shape:
        raise ValueError(f"keys got shape {np.shape(keys)}; expected {aspect.shape}: pass one key per clip")
    chosen = uniforms(keys, "video/chosen", 6)  # one column per on/off decision
    boxes = np.where(
        (chosen[:, :1] < settings.crop_probability),
        _random_boxes(aspect, keys, settings),
        center_boxes(aspect, settings),
    )
    order, factors = _jitter(keys, settings, chosen[:, 2] < settings.jitter_probability)
    sigma = uniforms(keys, "video/blur", 1)[:, 0]
    cutout = uniforms(keys, "video/cutout", 3)
    side = np.floor(cutout[:, 0] * settings.cutout_max_px) + 1
    side *= (chosen[:, 5] < settings.cutout_probability) & (settings.cutout_max_px > 0)
    corner = np.floor(cutout[:, 1:] * (settings.crop_px - side + 1)[:, None])
    return VideoParams(
        boxes=boxes,
        flip=chosen[:, 1] < settings.flip_probability,
        jitter_order=order,
        jitter_factors=factors,
        grayscale=chosen[:, 3] < settings.grayscale_probability,
        blur=chosen[:, 4] < settings.blur_probability,
        blur_sigmas_px=settings.blur_sigma_min_px + sigma * (settings.blur_sigma_max_px - settings.blur_sigma_min_px),
        cutouts_px=np.concatenate([corner, side[:, None]], axis=1).astype(np.int64),
    )


def apply_video(video: Tensor, params: VideoParams, settings: VideoTransformSettings) -> Tensor:
    """Apply sampled parameters to a batch of clips.

    The order is crop, flip, jitter, grayscale, blur, normalization, cutout.

    Args:
        video: as in ``augment_video``.
        params: from ``sample_video_params``.
        settings: as in ``augment_video``.

    Returns:
        As ``augment_video``.

    Raises:
        ValueError: if the video has a wrong shape or type.
    """
    _check(video, len(params.flip))
    num_clips, num_frames = video.shape[:2]
    side = settings.crop_px
    out = torch.empty(num_clips, 3, num_frames, side, side, device=video.device)
    for part in _parts(video):
        _apply_part(video[part], params.rows(part), settings, out[part])
    return out


def center_boxes(aspect: np.ndarray, settings: VideoTransformSettings) -> np.ndarray:
    """Return the centered square boxes (B, 4) of evaluation."""
    aspect = np.asarray(aspect, dtype=np.float64)
    side = settings.eval_crop_fraction * np.minimum(aspect, 1.0)  # in units of the source's height
    height, width = side, side / aspect
    return np.stack([(1 - height) / 2, (1 - width) / 2, height, width], axis=1)


def _random_boxes(aspect: np.ndarray, keys: np.ndarray, settings: VideoTransformSettings) -> np.ndarray:
    """Draw boxes like torchvision's RandomResizedCrop, in units of the source's height.

    Unlike torchvision's, sizes and positions are not rounded to pixels of the source, whose size is not known here.
    """
    tries = settings.crop_tries
    draw = uniforms(keys, "video/crop", 4 * tries).reshape(len(keys), tries, 4)
    area = settings.crop_area_min + draw[..., 0] * (settings.crop_area_max - settings.crop_area_min)
    area = area * aspect[:, None]
    log_min, log_max = math.log(settings.crop_aspect_min), math.log(settings.crop_aspect_max)
    ratio = np.exp(log_min + draw[..., 1] * (log_max - log_min))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    valid = (width <= aspect[:, None]) & (height <= 1)
    size = np.stack([height, width], axis=2)
    room = np.stack([np.ones_like(aspect), aspect], axis=1)
    corner = draw[..., 2:] * (room[:, None] - size)
    # If no try fits: the largest central crop with an allowed aspect ratio.
    fallback_aspect = np.clip(aspect, settings.crop_aspect_min, settings.crop_aspect_max)
    fallback_width = np.minimum(aspect, fallback_aspect)
    fallback = np.stack([fallback_width / fallback_aspect, fallback_width], axis=1)
    size = np.concatenate([size, fallback[:, None]], axis=1)
    corner = np.concatenate([corner, ((room - fallback) / 2)[:, None]], axis=1)
    first = np.concatenate([valid, np.ones((len(valid), 1), dtype=bool)], axis=1).argmax(1)
    clips = np.arange(len(aspect))
    return np.concatenate([corner[clips, first] / room, size[clips, first] / room], axis=1)


def _jitter(keys: np.ndarray, settings: VideoTransformSettings, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the order and factors of the color operations, both (B, 4)."""
    strength = np.array(
        [
            settings.jitter_brightness,
            settings.jitter_contrast,
            settings.jitter_saturation,
            settings.jitter_hue,
        ]
    )
    draw = uniforms(keys, "video/jitter", 8)
    order = np.argsort(draw[:, :4], axis=1, kind="stable")
    order[~chosen] = _NOTHING
    order[strength[np.minimum(order, _HUE)] == 0] = _NOTHING
    return order, np.array([1.0, 1.0, 1.0, 0.0]) + (2 * draw[:, 4:] - 1) * strength


def _apply_part(video: Tensor, params: VideoParams, settings: VideoTransformSettings, out: Tensor) -> None:
    """Augment clips into ``out``; ``place`` has the clip of each sorted row."""
    place = np.argsort(params.jitter_order[:, 0], kind="stable")
    x = _crop(video[torch.from_numpy(place).to(video.device)], params.boxes[place], params.flip[place], settings)
    for position in range(params.jitter_order.shape[1]):
        x, place = _sort(x, place, params.jitter_order[:, position])
        operations = params.jitter_order[place, position]
        for code, operation in enumerate((adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)):
            some = slice(*np.searchsorted(operations, [code, code + 1]))
            if some.start < some.stop:
                operation(x[some], _column(params.jitter_factors[place[some], code], x))
    # Sort so that gray clips and blurred clips are one slice each: gray, both, blurred, neither.
    group = np.where(params.grayscale, np.where(params.blur, 1, 0), np.where(params.blur, 2, 3))
    x, place = _sort(x, place, group)
    bounds = np.searchsorted(group[place], [1, 2, 3])
    to_grayscale_(x[: bounds[1]])
    blurred = slice(bounds[0], bounds[2])
    if blurred.start < blurred.stop:
        kernel = settings.crop_px // settings.blur_kernel_divisor * 2 + 1
        x[blurred] = gaussian_blur(x[blurred], params.blur_sigmas_px[place[blurred]], kernel)
    _normalize_(x, settings)
    if params.cutouts_px[:, 2].any():
        cut_out_(x, torch.from_numpy(params.cutouts_px[place]).to(x.device))
    out.index_copy_(0, torch.from_numpy(place).to(x.device), x)


def _crop(
    video: Tensor,
    boxes: np.ndarray,
    flip: np.ndarray | None,
    settings: VideoTransformSettings,
    *,
    beyond_box: bool = False,
) -> Tensor:
    """Crop boxes from uint8 clips and convert them to floats.

    Returns:
        Values in [0, 1], shape (B, 3, T, crop, crop).
    """
    num_clips, num_frames, height, width, _ = video.shape
    planes = video.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    boxes_px = torch.from_numpy((boxes * [height, width, height, width]).astype(np.float32)).to(video.device)
    mirrored = None if flip is None else torch.from_numpy(flip).to(video.device)
    size = (settings.crop_px, settings.crop_px)
    crop = resample(planes.flatten(1, 2), boxes_px, size, flip=mirrored, beyond_box=beyond_box)
    return crop.div_(255.0).view(num_clips, 3, num_frames, *size)


def _normalize_(x: Tensor, settings: VideoTransformSettings) -> Tensor:
    mean, std = (x.new_tensor(numbers).view(1, 3, 1, 1, 1) for numbers in (settings.mean, settings.std))
    return x.sub_(mean).div_(std)


def _sort(x: Tensor, place: np.ndarray, group: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Sort the rows of ``x``, and ``place``, by their clip's group."""
    rows = np.argsort(group[place], kind="stable")
    if (rows[1:] > rows[:-1]).all():
        return x, place
    return x[torch.from_numpy(rows).to(x.device)], place[rows]


def _column(values: np.ndarray, x: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(x.device).view(-1, 1, 1, 1, 1)


def _parts(video: Tensor) -> list[slice]:
    return parts(len(video), 4 * math.prod(video.shape[1:]), video.device)


def _aspects(aspect: Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(aspect).detach().cpu().double().numpy()
    if values.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
        refuse("aspect", values.tolist(), "one positive width/height per clip")
    return values


def _check(video: Tensor, num_clips: int) -> None:
    if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3 or len(video) != num_clips:
        refuse("video", f"{video.dtype} {tuple(video.shape)}", f"torch.uint8 ({num_clips}, T, H, W, 3)")
