"""Resampling and blurring of a batch in which every clip has a box or a width of its own.

A separable filter over one axis of length ``I`` that yields ``O`` values is an (O, I) matrix. With one matrix
a clip, a batch of different boxes costs two batched products instead of a Python loop. All clips go through
products of the same shape, so that a clip's result does not depend on what else is in the batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_CUBIC_A = -0.5  # Keys' cubic with this constant is what Pillow and torch's antialiased bicubic use
_MIN_OVERLAP_PX = 1e-3  # less than this of a pixel inside a box is float rounding of the box, not a part of it

_CPU_PART_BYTES = 4 * 2**20  # measured: larger working sets leave the cache and make malloc map fresh pages


def parts(num_clips: int, clip_bytes: int, device: torch.device) -> list[slice]:
    """Split a batch on the CPU into parts that stay in the cache; elsewhere the whole batch is one part.

    Args:
        num_clips: the batch's size.
        clip_bytes: size of the largest tensor that a clip needs on the way.
        device: where the batch is.

    Returns:
        Slices that cover the batch.
    """
    size = max(1, _CPU_PART_BYTES // clip_bytes) if device.type == "cpu" else max(1, num_clips)
    return [slice(start, start + size) for start in range(0, num_clips, size)]


def resample(
    x: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    filter: str = "bilinear",
    antialias: bool = True,
    flip: Tensor | None = None,
    beyond_box: bool = False,
) -> Tensor:
    """Crop a box out of every clip and resize it, one box a clip for all the clip's planes.

    Boxes need not lie on whole pixels: a pixel that a box covers in part counts by the part that is covered.
    For boxes of whole pixels the result equals torchvision's ``resized_crop(..., antialias=True)``.

    Args:
        x: float planes of shape (B, N, H, W).
        boxes: float, shape (B, 4): top, left, height, width in pixels of ``x``, inside ``x``.
        size: height and width (h, w) of the result, in pixels.
        filter: ``"bilinear"`` or ``"bicubic"``.
        antialias: widen the filter where a box shrinks. Without it, detail finer than a pixel folds over.
        flip: bool, shape (B,): mirror these clips left to right; ``None`` mirrors none.
        beyond_box: let the filter see pixels past the box's edge, as resizing and then cropping does. By
            default it stops there, as cropping and then resizing does.

    Returns:
        Float planes of shape (B, N, h, w) on the device of ``x``.

    Raises:
        ValueError: the shapes do not fit together or the filter is unknown.
    """
    if x.ndim != 4 or boxes.shape != (x.shape[0], 4):
        raise ValueError(
            f"resample got planes {tuple(x.shape)} and boxes {tuple(boxes.shape)}; "
            "expected (B, N, H, W) and (B, 4): pass one box a clip"
        )
    height, width = x.shape[2:]
    boxes = boxes.to(x.device, x.dtype)
    matrices = partial(box_matrices, filter=filter, antialias=antialias, beyond_box=beyond_box)
    rows = matrices(boxes[:, 0], boxes[:, 2], height, size[0])
    columns = matrices(boxes[:, 1], boxes[:, 3], width, size[1], flip=flip)
    return apply_matrices(x, rows, columns)


def apply_matrices(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter both axes of each clip's planes by the clip's own matrices.

    Args:
        x: float planes of shape (B, N, H, W).
        rows: shape (B, h, H), applied down the columns.
        columns: shape (B, w, W), applied along the rows.

    Returns:
        Float planes of shape (B, N, h, w).
    """
    num_clips, num_planes, height, _ = x.shape
    # A caller's autocast would round these products to 16 bits, which is visible in a filtered image.
    with torch.autocast(x.device.type, enabled=False):
        along = torch.bmm(x.reshape(num_clips, num_planes * height, -1), columns.transpose(1, 2))
        along = along.view(num_clips, num_planes, height, -1)
        return torch.matmul(rows[:, None], along)


def box_matrices(
    starts: Tensor,
    lengths: Tensor,
    num_in: int,
    num_out: int,
    *,
    filter: str = "bilinear",
    antialias: bool = True,
    beyond_box: bool = False,
    flip: Tensor | None = None,
) -> Tensor:
    """Return, for each clip, the matrix that resizes a stretch of one axis to ``num_out`` values.

    Args:
        starts: float, shape (B,): where the stretch begins, in input pixels (0 is the first one's left edge).
        lengths: float, shape (B,): the stretch's length in input pixels, positive.
        num_in: length of the input axis.
        num_out: length of the output axis.
        filter: see ``resample``.
        antialias: see ``resample``.
        beyond_box: see ``resample``.
        flip: bool, shape (B,): write these clips' stretches backwards.

    Returns:
        Matrices of shape (B, num_out, num_in) whose rows sum to 1.
    """
    scale = (lengths / num_out)[:, None]
    places = (torch.arange(num_out, device=starts.device, dtype=starts.dtype) + 0.5).expand(len(starts), -1)
    if flip is not None:
        places = torch.where(flip.to(starts.device)[:, None], num_out - places, places)
    centres = starts[:, None] + places * scale
    lower, upper = starts[:, None], (starts + lengths)[:, None]
    if beyond_box:
        lower, upper = torch.zeros_like(lower), torch.full_like(upper, num_in)
    return filter_matrices(centres, scale, lower, upper, num_in, filter=filter, antialias=antialias)


def filter_matrices(
    centres: Tensor,
    scale: Tensor,
    lower: Tensor,
    upper: Tensor,
    num_in: int,
    *,
    filter: str = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Return the matrices of a filter that reads around given places of an axis.

    Args:
        centres: float, shape (B, O): where each output value reads, in input pixels.
        scale: input pixels an output pixel, shape (B, O) or (B, 1).
        lower: first place that may be read, shape (B, O) or (B, 1).
        upper: end of what may be read, likewise.
        num_in: length of the input axis.
        filter: see ``resample``.
        antialias: see ``resample``.

    Returns:
        Matrices of shape (B, O, num_in) whose rows sum to 1.

    Raises:
        ValueError: the filter is unknown.
    """
    if filter not in _SUPPORT:
        raise ValueError(f"filter got {filter!r}; expected one of {', '.join(_SUPPORT)}: choose one of these")
    pixels = torch.arange(num_in, device=centres.device, dtype=centres.dtype)
    distance = (pixels + 0.5 - centres[..., None]).abs_()
    if antialias:
        distance /= scale.clamp(min=1.0)[..., None]
    weights = (1 - distance).clamp_(min=0) if filter == "bilinear" else _cubic(distance)
    overlap = torch.minimum(pixels + 1, upper[..., None]) - torch.maximum(pixels, lower[..., None])
    weights *= torch.where(overlap < _MIN_OVERLAP_PX, 0.0, overlap)
    return weights.div_(weights.sum(-1, keepdim=True))


def gaussian_matrices(sigmas: np.ndarray, length: int, kernel: int, device: torch.device) -> Tensor:
    """Return, for each clip, the matrix that blurs one axis by a Gaussian, reflecting at both ends.

    Equal to torchvision's ``gaussian_blur``: ``kernel`` taps, normalised, the edge pixel itself not repeated.

    Args:
        sigmas: standard deviations in pixels, shape (B,), positive.
        length: length of the axis, greater than ``kernel // 2``.
        kernel: number of taps, odd.
        device: where the matrices are wanted.

    Returns:
        Float32 matrices of shape (B, length, length).

    Raises:
        ValueError: the kernel is even or too wide to be reflected.
    """
    radius = kernel // 2
    if kernel % 2 == 0 or radius >= length:
        raise ValueError(
            f"blur kernel got {kernel} px on {length} px; expected an odd number below {2 * length}: raise "
            "blur_kernel_divisor or the crop"
        )
    # In NumPy and double: torch's exp rounds a value differently by its place in memory, hence in the batch.
    offsets = np.arange(radius + 1)
    taps = np.exp(-(offsets**2) / (2.0 * np.asarray(sigmas, dtype=np.float64)[:, None] ** 2))
    taps /= taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdims=True)
    # Out-of-reach places look up the last column, a zero.
    by_distance = torch.from_numpy(np.pad(taps, ((0, 0), (0, 1))).astype(np.float32)).to(device)
    places = torch.arange(length, device=device)
    out, source = places[:, None], places[None, :]
    direct = (source - out).abs()
    before = torch.where(source > 0, source + out, length)
    after = torch.where(source < length - 1, 2 * (length - 1) - source - out, length)

    def taps_at(reach: Tensor) -> Tensor:
        return by_distance[:, reach.clamp(max=radius + 1)]

    return taps_at(direct) + taps_at(before) + taps_at(after)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel of a non-negative distance in pixels.

    Each of its two pieces is 0 at the ends of its range, so clamping and adding serves instead of selecting,
    which is slow on the CPU.
    """
    near, far = distance.clamp(max=1), distance.clamp(1, 2)
    near = ((_CUBIC_A + 2) * near - (_CUBIC_A + 3)) * near * near + 1
    far = ((far - 5) * far + 8) * far * _CUBIC_A - 4 * _CUBIC_A
    return near.add_(far)
