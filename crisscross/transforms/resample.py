"""Batched resampling and blurring with one box or blur width per clip.

A separable filter that maps an axis of length ``I`` to ``O`` values is an (O, I) matrix. With one matrix per clip, a
batch of different boxes costs two batched products instead of a Python loop. The products of all clips have the same
shape, so a clip's result does not depend on the rest of the batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_CUBIC_A = -0.5  # Keys' cubic with this constant is what Pillow and torch's antialiased bicubic use
_MIN_OVERLAP_PX = 1e-3  # ours: a smaller part of a pixel in a box is a rounding error of the box

_CPU_PART_BYTES = 4 * 2**20  # ours, measured: larger working sets exceed the cache and make malloc map new pages


def parts(num_clips: int, clip_bytes: int, device: torch.device) -> list[slice]:
    """Split a batch on the CPU into parts that fit the cache.

    On a GPU the whole batch is one part.

    Args:
        num_clips: the batch size.
        clip_bytes: size of the largest intermediate tensor per clip.
        device: device of the batch.

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
    """Crop a box per clip from all its planes and resize it.

    Boxes may have fractional coordinates: a partly covered pixel has the weight of its covered part. For boxes of whole
    pixels the result equals torchvision's ``resized_crop(..., antialias=True)``.

    Args:
        x: float planes of shape (B, N, H, W).
        boxes: float, shape (B, 4): top, left, height, width in pixels of ``x``, inside ``x``.
        size: height and width (h, w) of the result, in pixels.
        filter: ``"bilinear"`` or ``"bicubic"``.
        antialias: whether to widen the filter for downscaling, which avoids aliasing.
        flip: bool, shape (B,): clips to flip horizontally; None = no clip.
        beyond_box: whether the filter reads pixels outside the box, as resizing before cropping does. By default it
            does not, as cropping before resizing.

    Returns:
        Float planes of shape (B, N, h, w) on the device of ``x``.

    Raises:
        ValueError: if the shapes do not match or the filter is unknown.
    """
    if x.ndim != 4 or boxes.shape != (x.shape[0], 4):
        raise ValueError(
            f"resample got planes {tuple(x.shape)} and boxes {tuple(boxes.shape)}; "
            "expected (B, N, H, W) and (B, 4): pass one box per clip"
        )
    height, width = x.shape[2:]
    boxes = boxes.to(x.device, x.dtype)
    matrices = partial(box_matrices, filter=filter, antialias=antialias, beyond_box=beyond_box)
    rows = matrices(boxes[:, 0], boxes[:, 2], height, size[0])
    columns = matrices(boxes[:, 1], boxes[:, 3], width, size[1], flip=flip)
    return apply_matrices(x, rows, columns)


def apply_matrices(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter both axes of each clip's planes by the clip's matrices.

    Args:
        x: float planes of shape (B, N, H, W).
        rows: shape (B, h, H), applied down the columns.
        columns: shape (B, w, W), applied along the rows.

    Returns:
        Float planes of shape (B, N, h, w).
    """
    num_clips, num_planes, height, _ = x.shape
    # Under autocast these products would have 16 bits, which is visible in a filtered image.
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
    """Return each clip's matrix that resizes a range of one axis.

    Args:
        starts: float, shape (B,): start of the range, in input pixels (0 = left edge of the first pixel).
        lengths: float, shape (B,): length of the range in input pixels, positive.
        num_in: length of the input axis.
        num_out: length of the output axis.
        filter: see ``resample``.
        antialias: see ``resample``.
        beyond_box: see ``resample``.
        flip: bool, shape (B,): clips whose output is reversed.

    Returns:
        Matrices of shape (B, num_out, num_in) whose rows sum to 1.
    """
    scale = (lengths / num_out)[:, None]
    places = (torch.arange(num_out, device=starts.device, dtype=starts.dtype) + 0.5).expand(len(starts), -1)
    if flip is not None:
        places = torch.where(flip.to(starts.device)[:, None], num_out - places, places)
    centers = starts[:, None] + places * scale
    lower, upper = starts[:, None], (starts + lengths)[:, None]
    if beyond_box:
        lower, upper = torch.zeros_like(lower), torch.full_like(upper, num_in)
    return filter_matrices(centers, scale, lower, upper, num_in, filter=filter, antialias=antialias)


def filter_matrices(
    centers: Tensor,
    scale: Tensor,
    lower: Tensor,
    upper: Tensor,
    num_in: int,
    *,
    filter: str = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Return the matrices of a filter with given centers on an axis.

    Args:
        centers: float, shape (B, O): center of the filter for each output value, in input pixels.
        scale: input pixels per output pixel, shape (B, O) or (B, 1).
        lower: start of the readable range, shape (B, O) or (B, 1).
        upper: end of the readable range, shape (B, O) or (B, 1).
        num_in: length of the input axis.
        filter: see ``resample``.
        antialias: see ``resample``.

    Returns:
        Matrices of shape (B, O, num_in) whose rows sum to 1.

    Raises:
        ValueError: if the filter is unknown.
    """
    if filter not in _SUPPORT:
        raise ValueError(f"filter got {filter!r}; expected one of {', '.join(_SUPPORT)}: choose one of these")
    pixels = torch.arange(num_in, device=centers.device, dtype=centers.dtype)
    distance = (pixels + 0.5 - centers[..., None]).abs_()
    if antialias:
        distance /= scale.clamp(min=1.0)[..., None]
    weights = (1 - distance).clamp_(min=0) if filter == "bilinear" else _cubic(distance)
    overlap = torch.minimum(pixels + 1, upper[..., None]) - torch.maximum(pixels, lower[..., None])
    weights *= torch.where(overlap < _MIN_OVERLAP_PX, 0.0, overlap)
    return weights.div_(weights.sum(-1, keepdim=True))


def gaussian_matrices(sigmas: np.ndarray, length: int, kernel: int, device: torch.device) -> Tensor:
    """Return each clip's matrix of a Gaussian blur with reflected edges.

    Equal to torchvision's ``gaussian_blur``: ``kernel`` taps, normalized, reflection without repeating the edge pixel.

    Args:
        sigmas: standard deviations in pixels, shape (B,), positive.
        length: length of the axis, greater than ``kernel // 2``.
        kernel: number of taps, odd.
        device: device of the result.

    Returns:
        Float32 matrices of shape (B, length, length).

    Raises:
        ValueError: if the kernel is even or too wide for the reflection.
    """
    radius = kernel // 2
    if kernel % 2 == 0 or radius >= length:
        raise ValueError(
            f"blur kernel got {kernel} px on {length} px; expected an odd number below {2 * length}: raise "
            "blur_kernel_divisor or the crop"
        )
    # In NumPy and double precision: the rounding of torch's exp depends on a value's position in the batch.
    offsets = np.arange(radius + 1)
    taps = np.exp(-(offsets**2) / (2.0 * np.asarray(sigmas, dtype=np.float64)[:, None] ** 2))
    taps /= taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdims=True)
    # Distances beyond the kernel look up the last column, which is 0.
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
    """Return Keys' cubic convolution kernel at a non-negative distance in pixels.

    Each of its two pieces is 0 at the ends of its range, so the sum of clamped pieces replaces ``torch.where``, which
    is slow on the CPU.
    """
    near, far = distance.clamp(max=1), distance.clamp(1, 2)
    near = ((_CUBIC_A + 2) * near - (_CUBIC_A + 3)) * near * near + 1
    far = ((far - 5) * far + 8) * far * _CUBIC_A - 4 * _CUBIC_A
    return near.add_(far)
