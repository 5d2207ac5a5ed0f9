"""Saliency maps against a gradient worked out by hand."""

from __future__ import annotations

import torch

from analysis.figures.saliency import saliency
from crisscross.models.r2plus1d import VideoBackbone


def test_the_map_of_a_linear_network_is_its_gradient_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3 * 2 * 4 * 4, generator=generator)
    video = torch.randn(2, 3, 2, 4, 4, generator=generator)
    found = saliency(lambda x: x.flatten(1) @ weights.T, video)
    gradient = (video.flatten(1) @ weights.T @ weights).reshape(video.shape)  # of |Wx|^2 / 2
    torch.testing.assert_close(found, gradient.square().sum(dim=1).sqrt())
    assert found.shape == (2, 2, 4, 4)


def test_clips_do_not_mix_and_nothing_is_left_behind() -> None:
    backbone = VideoBackbone(depth=10, width=4).eval().requires_grad_(False)
    video = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(False):
        both = saliency(backbone, video)
    torch.testing.assert_close(both[1:], saliency(backbone, video[1:]), rtol=1e-4, atol=1e-7)
    assert both.min() >= 0 < both.amax(dim=(1, 2, 3)).min()
    assert not video.requires_grad
    assert all(parameter.grad is None for parameter in backbone.parameters())
