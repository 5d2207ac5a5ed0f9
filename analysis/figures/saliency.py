"""Saliency maps of a video network (Figure 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saliency(network: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """Return how much each pixel of each frame changes the representation.

    The map is the norm, over the color channels, of the gradient of half the squared norm of the representation. The
    paper shows such maps but does not name the quantity of the gradient.

    Args:
        network: a frozen network in eval mode, from (B, 3, T, H, W) to features (B, D).
        video: (B, 3, T, H, W), normalized.

    Returns:
        (B, T, H, W), nonnegative. Clips are independent of each other, because the network is in eval mode.
    """
    inputs = video.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        energy = network(inputs).square().sum() / 2  # ours: the squared norm needs no class
        (gradient,) = torch.autograd.grad(energy, inputs)
    return gradient.norm(dim=1)
