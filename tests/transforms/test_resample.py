"""Resampling by per-clip matrices against torchvision and torch on single clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from crisscross.transforms.resample import gaussian_matrices, parts, resample

BOXES = torch.tensor([[0.0, 0, 40, 50], [3, 7, 11, 9], [20, 10, 20, 40], [39, 49, 1, 1]])
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def planes(num_clips: int = 4, height: int = 40, width: int = 50) -> torch.Tensor:
    return torch.rand(num_clips, 6, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("size", [(16, 24), (33, 20), (64, 70)])
def test_equals_torchvision_for_boxes_of_whole_pixels(name, size):
    x = planes()
    got = resample(x, BOXES, size, filter=name)
    for clip, box, result in zip(x, BOXES.int().tolist(), got, strict=True):
        expected = F.resized_crop(clip, *box, list(size), interpolation=MODES[name], antialias=True)
        torch.testing.assert_close(result, expected, atol=5e-6, rtol=0)


def test_without_antialias_equals_plain_bilinear():
    x = planes(1)
    got = resample(x, torch.tensor([[0.0, 0, 40, 50]]), (16, 20), antialias=False)
    expected = torch.nn.functional.interpolate(x, (16, 20), mode="bilinear", antialias=False)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", MODES)
def test_whole_frame_at_its_own_size_is_the_identity(name):
    x = planes(2)
    assert torch.equal(resample(x, BOXES[[0, 0]], (40, 50), filter=name), x)


def test_flip_mirrors_the_chosen_clips_only():
    x = planes()
    plain = resample(x, BOXES, (16, 24))
    got = resample(x, BOXES, (16, 24), flip=torch.tensor([True, False, True, False]))
    torch.testing.assert_close(got[[0, 2]], plain[[0, 2]].flip(-1), atol=2e-6, rtol=0)
    assert torch.equal(got[[1, 3]], plain[[1, 3]])


def test_beyond_box_equals_resizing_and_then_cropping():
    x = planes(1, 40, 40)
    got = resample(x, torch.tensor([[10.0, 5, 20, 20]]), (16, 16), beyond_box=True)
    resized = F.resize(x, [32, 32], antialias=True)  # the box is 16 px of it, from (8, 4)
    torch.testing.assert_close(got, resized[..., 8:24, 4:20], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", MODES)
def test_a_constant_stays_constant_in_any_box(name):
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(200, 4, generator=generator) * torch.tensor([20.0, 25, 20, 25]) + 1e-3
    x = torch.full((200, 1, 40, 50), 0.7)
    torch.testing.assert_close(
        resample(x, boxes, (8, 9), filter=name), torch.full((200, 1, 8, 9), 0.7), atol=2e-6, rtol=0
    )


def test_a_box_between_pixels_reads_between_pixels():
    ramp = torch.arange(50.0).expand(1, 1, 40, 50)  # pixel i, whose center is i + 0.5, holds i
    got = resample(ramp, torch.tensor([[10.25, 10.25, 16, 16]]), (16, 16))[0, 0, 8]
    torch.testing.assert_close(got[1:-1], 10.25 + torch.arange(1.0, 15), atol=1e-4, rtol=0)


def test_parts_cover_the_batch_whatever_its_size():
    for num_clips in (0, 1, 7, 64):
        slices = parts(num_clips, 2**20, torch.device("cpu"))
        assert [i for part in slices for i in range(num_clips)[part]] == list(range(num_clips))
    assert parts(64, 2**30, torch.device("cpu"))[0] == slice(0, 1)
    assert parts(64, 2**30, torch.device("meta")) == [slice(0, 64)]


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"expected \(B, N, H, W\) and \(B, 4\): pass one box per clip"):
        resample(planes(), BOXES[:2], (8, 8))
    with pytest.raises(ValueError, match="filter got 'lanczos'; expected one of bilinear, bicubic"):
        resample(planes(), BOXES, (8, 8), filter="lanczos")
    with pytest.raises(ValueError, match="blur kernel got 11 px on 5 px; expected an odd number below 10"):
        gaussian_matrices(np.ones(1), 5, 11, torch.device("cpu"))
