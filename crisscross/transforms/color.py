"""Color jitter, grayscale, blur and cutout of batches of clips, with parameters per clip.

Every function takes clips (B, 3, T, H, W) and uses one set of parameters per clip. ``video.py`` draws them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crisscross.transforms.resample import apply_matrices, gaussian_matrices

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision and Pillow round it


def adjust_brightness_(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply colors by factors, in place; clamp to [0, 1].

    Colors are (B, 3, T, H, W), factors (B, 1, 1, 1, 1).
    """
    return x.mul_(factors).clamp_(0, 1)


def adjust_contrast_(x: Tensor, factors: Tensor) -> Tensor:
    """Blend each frame with its mean luma, in place, like torchvision.

    One factor per clip, one mean per frame. Shapes as in ``adjust_brightness_``.
    """
    mean = _luma(x.mean((-2, -1), keepdim=True))
    return x.mul_(factors).add_(mean.mul_(1 - factors)).clamp_(0, 1)


def adjust_saturation_(x: Tensor, factors: Tensor) -> Tensor:
    """Blend each pixel with its luma, in place. Shapes as in ``adjust_brightness_``."""
    luma = _luma(x).mul_(1 - factors)
    return x.mul_(factors).add_(luma).clamp_(0, 1)


def adjust_hue_(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate the hue by fractions of a turn, in place.

    ``factors`` are from -0.5 to 0.5 turns; shapes as in ``adjust_brightness_``. Value and saturation do not change: a
    pixel keeps its minimum ``low`` and its range ``span``; only the position of each channel in this range changes. On
    the hue hexagon, in sixths of a turn, a channel is at its maximum within 1 of its corner (red 0, green 2, blue 4)
    and falls to its minimum at 2; conversely, the distance from the red corner is 1 - red + green + blue. All values
    are multiplied by ``span``, which avoids a division by 0, and computed from minima and absolute values, which cost a
    tenth of ``torch.where`` on the CPU.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    from_red = high.sub(low, alpha=2).sub_(red).add_(green).add_(blue)
    span = high.sub_(low)
    hue = torch.copysign(from_red, green - blue).add_(span * (6 * factors[:, 0]))  # from -6 to 6 spans
    for channel, corner in ((red, 0), (green, 2), (blue, 4)):
        away = hue.sub(span, alpha=corner).abs_()  # may exceed 3, half a turn
        away.sub_(span, alpha=3).abs_().sub_(span, alpha=3).abs_()
        torch.add(low, torch.minimum(away.neg_().add_(span, alpha=2).clamp_(min=0), span), out=channel)
    return x


def to_grayscale_(x: Tensor) -> Tensor:
    """Replace all color channels by the luma, in place.

    ``x`` has shape (B, 3, T, H, W).
    """
    return x.copy_(_luma(x).expand_as(x))


def gaussian_blur(x: Tensor, sigmas_px: np.ndarray, kernel: int) -> Tensor:
    """Blur (B, 3, T, H, W) by ``sigmas_px`` (B,), with reflected edges."""
    matrices = [gaussian_matrices(sigmas_px, length, kernel, x.device) for length in x.shape[-2:]]
    return apply_matrices(x.flatten(1, 2), *matrices).view_as(x)


def cut_out_(x: Tensor, cutouts_px: Tensor) -> Tensor:
    """Set a square of each clip to 0, in place.

    ``x`` has shape (B, 3, T, H, W), and ``cutouts_px`` (B, 3) is top, left, side in pixels. The side is uniform from 1
    to ``cutout_max_px``, and the square is inside the crop and the same in all frames. For normalized colors, 0 is the
    data's mean. (Ours, except the maximal side, which is the paper's.)
    """
    outside = [
        (places < start[:, None]) | (places >= (start + cutouts_px[:, 2])[:, None])
        for places, start in (
            (torch.arange(x.shape[-2], device=x.device), cutouts_px[:, 0]),
            (torch.arange(x.shape[-1], device=x.device), cutouts_px[:, 1]),
        )
    ]
    keep = outside[0][:, :, None] | outside[1][:, None, :]
    return x.mul_(keep[:, None, None].to(x.dtype))


def _luma(x: Tensor) -> Tensor:
    red, green, blue = x.chunk(3, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
