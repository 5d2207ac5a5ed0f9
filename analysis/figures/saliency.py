"""Where a video network looks: the gradient of its representation with respect to the frames (Figure 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saliency(network: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """Return how much each pixel of each frame moves the representation.

    It is the length, over the colours, of the gradient of half the squared norm of the representation. The paper shows
    such maps and does not say of what the gradient is; the squared norm, which needs no class, is chosen by us.

    Args:
        network: a frozen network in eval mode, from (B, 3, T, H, W) to features (B, D).
        video: (B, 3, T, H, W), normalised.

    Returns:
        (B, T, H, W), 0 or more. Clips do not mix: in eval mode no layer looks at other clips.
    """
    inputs = video.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        energy = network(inputs).square().sum() / 2
        (gradient,) = torch.autograd.grad(energy, inputs)
    return gradient.norm(dim=1)
