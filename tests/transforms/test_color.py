"""Operations on frames against torchvision on single clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from crisscross.transforms.color import (
    adjust_brightness_,
    adjust_contrast_,
    adjust_hue_,
    adjust_saturation_,
    cut_out_,
    gaussian_blur,
    to_grayscale_,
)


def colors(num_clips: int = 5) -> torch.Tensor:
    """Return float clips (B, 3, T, H, W), some with gray, black, white and saturated pixels."""
    x = torch.rand(num_clips, 3, 4, 24, 26, generator=torch.Generator().manual_seed(2))
    x[0] = (x[0] * 2).round() / 2
    x[1, :, :, :6] = x[1, :1, :, :6]
    x[1, :, :, 6:8], x[1, :, :, 8:10] = 0, 1
    return x


def column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)


def frames_first(clip: torch.Tensor) -> torch.Tensor:
    return clip.transpose(0, 1)


# Each operation against torchvision on single clips.


@pytest.mark.parametrize(
    ("operation", "reference", "factors"),
    [
        (adjust_brightness_, F.adjust_brightness, [0.6, 0.9, 1.0, 1.2, 1.4]),
        (adjust_contrast_, F.adjust_contrast, [0.6, 0.9, 1.0, 1.2, 1.4]),
        (adjust_saturation_, F.adjust_saturation, [0.0, 0.6, 1.0, 1.2, 1.4]),
        (adjust_hue_, F.adjust_hue, [-0.5, -0.2, 0.0, 0.13, 0.5]),
        (adjust_hue_, F.adjust_hue, [0.31, 0.2, -0.07, -0.33, 0.4]),
    ],
)
def test_color_operations_equal_torchvision(operation, reference, factors):
    x = colors()
    expected = [reference(frames_first(clip), factor) for clip, factor in zip(x, factors, strict=True)]
    got = operation(x.clone(), column(factors))
    torch.testing.assert_close(got, torch.stack(expected).transpose(1, 2), atol=5e-6, rtol=0)


def test_grayscale_equals_torchvision():
    x = colors()
    expected = F.rgb_to_grayscale(x.transpose(1, 2), num_output_channels=3).transpose(1, 2)
    torch.testing.assert_close(to_grayscale_(x.clone()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", [1, 5, 11])
def test_blur_equals_torchvision(kernel):
    x, sigmas = colors(), np.array([0.1, 0.5, 1.0, 1.7, 2.0])
    got = gaussian_blur(x, sigmas, kernel)
    for clip, sigma, result in zip(x, sigmas, got, strict=True):
        expected = F.gaussian_blur(frames_first(clip), [kernel, kernel], [sigma, sigma])
        torch.testing.assert_close(frames_first(result), expected, atol=2e-6, rtol=0)


def test_cutout_is_one_square_in_all_frames_and_channels():
    got = cut_out_(torch.ones(3, 3, 4, 24, 26), torch.tensor([[2, 5, 7], [23, 25, 1], [9, 9, 0]]))
    expected = torch.ones(3, 3, 4, 24, 26)
    expected[0, :, :, 2:9, 5:12] = 0
    expected[1, :, :, 23:, 25:] = 0
    assert torch.equal(got, expected)
