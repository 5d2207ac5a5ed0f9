"""Video transforms: parameters, operations (against torchvision), and invariances."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as F

from crisscross.transforms import resample
from crisscross.transforms.video import (
    VideoTransformSettings,
    apply_video,
    augment_video,
    center_boxes,
    eval_transform_video,
    sample_video_params,
)
from crisscross.utils.rng import sample_keys, uniforms
from tests.support import needs_cuda

SMALL = VideoTransformSettings(crop_px=48)


OFF = VideoTransformSettings(
    crop_px=48,
    crop_probability=0,
    flip_probability=0,
    jitter_brightness=0,
    jitter_contrast=0,
    jitter_saturation=0,
    jitter_hue=0,
    grayscale_probability=0,
    blur_probability=0,
    cutout_max_px=0,
)


def batch(num_clips: int = 12, height: int = 56, width: int = 72, num_frames: int = 4):
    """Return smooth random clips, their aspect ratios and keys."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_clips * num_frames, 3, 9, 11, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    video = (fine * 255).round().to(torch.uint8).view(num_clips, num_frames, 3, height, width)
    aspect = 0.5 + 1.7 * torch.rand(num_clips, generator=generator)
    keys = sample_keys(3, "video/view0", 5, np.arange(num_clips))
    return video.permute(0, 1, 3, 4, 2).contiguous(), aspect, keys


def reference_clip(video, draws, clip, settings):
    """Augment one clip by torchvision's functions with its sampled parameters."""
    height, width = video.shape[2:4]
    x = video[clip].permute(0, 3, 1, 2).float() / 255
    box = (draws.boxes[clip] * [height, width, height, width]).round().astype(int).tolist()
    x = F.resized_crop(x, *box, [settings.crop_px] * 2, antialias=True)
    x = F.horizontal_flip(x) if draws.flip[clip] else x
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for code in draws.jitter_order[clip]:
        x = operations[code](x, float(draws.jitter_factors[clip, code]))
    x = F.rgb_to_grayscale(x, 3) if draws.grayscale[clip] else x
    if draws.blur[clip]:
        kernel = settings.crop_px // 20 * 2 + 1
        x = F.gaussian_blur(x, [kernel] * 2, [float(draws.blur_sigmas_px[clip])] * 2)
    x = F.normalize(x, settings.mean, settings.std)
    top, left, side = draws.cutouts_px[clip]
    x[..., top : top + side, left : left + side] = 0
    return x.transpose(0, 1)


def test_the_whole_chain_equals_torchvision_clip_by_clip():
    video, aspect, keys = batch(24)
    draws = sample_video_params(aspect, keys, SMALL)
    pixels = np.array([56, 72, 56, 72])
    whole = np.maximum(np.floor(draws.boxes * pixels), [0, 0, 1, 1])  # torchvision crops whole pixels only
    draws = dataclasses.replace(draws, boxes=whole / pixels)
    assert draws.grayscale.any()
    assert (draws.grayscale & draws.blur).any()
    got = apply_video(video, draws, SMALL)
    for clip in range(len(video)):
        expected = reference_clip(video, draws, clip, SMALL)
        torch.testing.assert_close(got[clip], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 80), (80, 64), (64, 64)])
def test_evaluation_equals_resize_and_centre_crop(height, width):
    """A crop of 56 of a short side of 64: torchvision resizes nothing and crops on whole pixels."""
    video = batch(2, height, width)[0]
    settings = VideoTransformSettings(crop_px=56)
    got = eval_transform_video(video, torch.full((2,), width / height), settings)
    x = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])(video.permute(0, 1, 4, 2, 3).float() / 255)
    expected = F.normalize(x, settings.mean, settings.std).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_evaluation_undoes_the_canvas():
    """A scene squeezed to a square canvas gives about the same crop as on its original canvas."""
    ramp = torch.linspace(0, 255, 128).expand(64, 128)
    scene = torch.stack([ramp, ramp.flip(1), ramp], -1)
    wide = scene.round().to(torch.uint8).expand(1, 2, 64, 128, 3).contiguous()
    square = F.resize(wide.permute(0, 1, 4, 2, 3), [64, 64], antialias=True).permute(0, 1, 3, 4, 2)
    results = [eval_transform_video(video, torch.tensor([2.0]), SMALL) for video in (wide, square)]
    torch.testing.assert_close(results[0], results[1], atol=0.05, rtol=0)


# Invariance: the rest of the batch.


def test_neither_order_nor_batch_size_nor_composition_matters():
    video, aspect, keys = batch(12)
    whole = augment_video(video, aspect, keys, SMALL)
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(augment_video(video[order], aspect[order], keys[order], SMALL), whole[order])
    for size in (1, 2, 5, 7):
        some = augment_video(video[:size], aspect[:size], keys[:size], SMALL)
        assert torch.equal(some, whole[:size])
    others = torch.flip(video, [0])
    others[4] = video[4]
    other_keys = keys[::-1].copy()
    other_keys[4], other_aspect = keys[4], aspect.flip(0).clone()
    other_aspect[4] = aspect[4]
    assert torch.equal(augment_video(others, other_aspect, other_keys, SMALL)[4], whole[4])
    assert torch.equal(
        eval_transform_video(video[:5], aspect[:5], SMALL), eval_transform_video(video, aspect, SMALL)[:5]
    )


def test_how_a_batch_is_split_for_the_cache_does_not_matter(monkeypatch):
    video, aspect, keys = batch(9)
    whole = augment_video(video, aspect, keys, SMALL)
    for num_bytes in (1, 500_000, 2**40):
        monkeypatch.setattr(resample, "_CPU_PART_BYTES", num_bytes)
        assert torch.equal(augment_video(video, aspect, keys, SMALL), whole)


def test_every_frame_of_a_clip_is_treated_alike():
    video, aspect, keys = batch(16)
    still = video[:, :1].expand(-1, 6, -1, -1, -1).contiguous()
    result = augment_video(still, aspect, keys, SMALL)
    # A matrix product may round its last rows differently from its first ones: hence no bit equality here.
    torch.testing.assert_close(result, result[:, :, :1].expand_as(result), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "on",
    [
        {"crop_probability": 1.0},
        {"flip_probability": 0.5},
        {"jitter_brightness": 0.4},
        {"jitter_contrast": 0.4},
        {"jitter_saturation": 0.4},
        {"jitter_hue": 0.2},
        {"grayscale_probability": 0.5},
        {"blur_probability": 0.5},
        {"cutout_max_px": 20},
    ],
    ids=lambda on: next(iter(on)),
)
def test_each_augmentation_alone_changes_clips_by_key_and_frames_alike(on):
    settings = dataclasses.replace(OFF, **on)
    video, aspect, keys = batch(16)
    still = video[:1, :1].expand(16, 3, -1, -1, -1).contiguous()
    plain = augment_video(still, aspect[:1].expand(16), keys, OFF)
    result = augment_video(still, aspect[:1].expand(16), keys, settings)
    torch.testing.assert_close(result, result[:, :, :1].expand_as(result), atol=1e-5, rtol=0)
    changed = (result - plain).abs().amax((1, 2, 3, 4)) > 1e-3
    assert changed.any()
    if "probability" not in next(iter(on)) or on == {"crop_probability": 1.0}:
        assert changed.sum() >= 14  # a factor near 1 may leave a clip as it was
        assert len({round(value, 4) for value in result.mean((1, 2, 3, 4)).tolist()}) > 8
    else:
        assert not changed.all()


def test_everything_off_is_the_evaluation():
    video, aspect, keys = batch()
    result = augment_video(video, aspect, keys, OFF)
    expected = eval_transform_video(video, aspect, OFF)
    inner = (..., slice(2, -2), slice(2, -2))  # the evaluation's filter reads pixels outside the box
    torch.testing.assert_close(result[inner], expected[inner], atol=1e-5, rtol=0)


def test_result_is_normalized_float_and_the_input_does_not_change():
    video, aspect, keys = batch()
    before = video.clone()
    result = augment_video(video, aspect, keys, SMALL)
    assert result.shape == (12, 3, 4, 48, 48)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.isfinite(result).all()
    assert torch.equal(video, before)
    white = eval_transform_video(torch.full_like(video, 255), aspect, SMALL)[0, :, 0, 0, 0]
    torch.testing.assert_close(white, (1 - torch.tensor(SMALL.mean)) / torch.tensor(SMALL.std))


def test_a_callers_autocast_does_not_reach_in():
    video, aspect, keys = batch()
    expected = augment_video(video, aspect, keys, SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment_video(video, aspect, keys, SMALL), expected)


# The parameters.


def reference_box(aspect, draw, settings):
    """Return torchvision's RandomResizedCrop.make_params on a frame of height 1, without rounding."""
    for area_draw, ratio_draw, top_draw, left_draw in draw.reshape(-1, 4):
        area = aspect * (settings.crop_area_min + area_draw * (settings.crop_area_max - settings.crop_area_min))
        low, high = math.log(settings.crop_aspect_min), math.log(settings.crop_aspect_max)
        ratio = math.exp(low + ratio_draw * (high - low))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= aspect and height <= 1:
            return top_draw * (1 - height), left_draw * (aspect - width) / aspect, height, width / aspect
    if aspect < settings.crop_aspect_min:
        width, height = aspect, aspect / settings.crop_aspect_min
    elif aspect > settings.crop_aspect_max:
        width, height = settings.crop_aspect_max, 1.0
    else:
        width, height = aspect, 1.0
    return (1 - height) / 2, (aspect - width) / 2 / aspect, height, width / aspect


def test_boxes_are_the_first_try_that_fits_else_the_central_crop():
    aspect = np.tile([0.3, 0.5, 0.75, 1.0, 4 / 3, 16 / 9, 3.5, 12.0], 100)
    keys = sample_keys(1, "video/view1", 0, np.arange(800))
    for settings in (VideoTransformSettings(), VideoTransformSettings(crop_area_min=0.9, crop_tries=2)):
        boxes = sample_video_params(aspect, keys, settings).boxes
        draw = uniforms(keys, "video/crop", 4 * settings.crop_tries)
        expected = [reference_box(aspect[b], draw[b], settings) for b in range(800)]
        np.testing.assert_allclose(boxes, expected, atol=1e-12)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-12).all()


@pytest.mark.parametrize("aspect", [0.6, 4 / 3, 2.4])
def test_boxes_are_distributed_as_torchvisions(aspect):
    torch.manual_seed(0)
    num, height = 3000, 1000
    width = round(height * aspect)
    transform = v2.RandomResizedCrop(112, antialias=True)
    frame = torch.empty(3, height, width, device="meta")
    theirs = [transform.make_params([frame]) for _ in range(num)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    theirs = theirs / [height, width, height, width]
    keys = sample_keys(0, "video/view0", 0, np.arange(num))
    ours = sample_video_params(np.full(num, aspect), keys, VideoTransformSettings()).boxes
    quantiles = np.linspace(0.05, 0.95, 10)
    for column_of in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        difference = np.quantile(column_of(ours), quantiles) - np.quantile(column_of(theirs), quantiles)
        assert np.abs(difference).max() < 0.05


def test_draws_have_the_papers_probabilities_and_ranges():
    keys = sample_keys(0, "video/view0", 0, np.arange(20000))
    draws = sample_video_params(np.full(20000, 4 / 3), keys, VideoTransformSettings())
    for values, expected in ((draws.flip, 0.5), (draws.grayscale, 0.2), (draws.blur, 0.5)):
        assert abs(values.mean() - expected) < 0.02
    assert draws.blur_sigmas_px.min() >= 0.1
    assert draws.blur_sigmas_px.max() <= 2.0
    low, high = draws.jitter_factors.min(0), draws.jitter_factors.max(0)
    np.testing.assert_allclose(low, [0.6, 0.6, 0.6, -0.2], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.4, 0.2], atol=0.01)
    orders, counts = np.unique(draws.jitter_order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 0.8 * 20000 / 24
    top, left, side = draws.cutouts_px.T
    assert set(side) == set(range(1, 21))
    assert top.min() == left.min() == 0
    assert (top + side).max() == (left + side).max() == 112
    switches = np.stack([draws.flip, draws.grayscale, draws.blur]).astype(float)
    assert np.abs(np.corrcoef(switches) - np.eye(3)).max() < 0.03


def test_jitter_off_for_a_clip_or_a_color_leaves_it_out():
    video, aspect, keys = batch()
    none = dataclasses.replace(SMALL, jitter_probability=0.0)
    assert (sample_video_params(aspect, keys, none).jitter_order == 4).all()
    no_hue = sample_video_params(aspect, keys, dataclasses.replace(SMALL, jitter_hue=0.0))
    assert (no_hue.jitter_order == 4).sum() == 12
    assert not (no_hue.jitter_order == 3).any()
    assert torch.isfinite(apply_video(video, no_hue, SMALL)).all()


def test_centre_box_is_square_in_the_source():
    boxes = center_boxes(np.array([0.5, 1.0, 2.0]), VideoTransformSettings())
    np.testing.assert_allclose(boxes[:, 2] / (boxes[:, 3] * [0.5, 1.0, 2.0]), 1)
    np.testing.assert_allclose(boxes[:, 2], [0.4375, 0.875, 0.875])
    np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:] / 2, 0.5)


# Errors.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip_probability": 1.5}, "flip_probability got 1.5; expected a number from 0 to 1"),
        ({"jitter_hue": 0.6}, "jitter_hue got 0.6; expected 0 to 0.5"),
        ({"jitter_contrast": -0.1}, "jitter_contrast got -0.1; expected 0 to 1"),
        ({"crop_area_min": 0.0}, "crop_area_min got 0.0; expected 0 < min <= max <= 1"),
        ({"crop_px": 16}, r"cutout_max_px got 20; expected 0 to crop_px \(16\): correct cutout_max_px"),
        ({"std": (1.0, 1.0)}, "expected 3 means, 3 positive deviations"),
        ({"crop_px": 0}, "crop_px got 0; expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message) as error:
        VideoTransformSettings(**values)
    assert "\n" not in str(error.value)


def test_wrong_arguments_are_refused():
    video, aspect, keys = batch(3)
    with pytest.raises(ValueError, match=r"video got torch.float32 .*expected torch.uint8 \(3, T, H, W, 3\)"):
        augment_video(video.float(), aspect, keys, SMALL)
    with pytest.raises(ValueError, match=r"expected torch.uint8 \(2, T, H, W, 3\)"):
        eval_transform_video(video, aspect[:2], SMALL)
    with pytest.raises(ValueError, match=r"keys got shape \(2,\); expected \(3,\): pass one key per clip"):
        augment_video(video, aspect, keys[:2], SMALL)
    with pytest.raises(ValueError, match=r"aspect got .*expected one positive width/height per clip"):
        augment_video(video, aspect * 0, keys, SMALL)


def test_lists_from_a_config_become_tuples():
    assert VideoTransformSettings(mean=[0.5, 0.5, 0.5]).mean == (0.5, 0.5, 0.5)


@needs_cuda
def test_cuda_equals_cpu_and_ignores_the_batch():
    video, aspect, keys = batch(12)
    expected = augment_video(video, aspect, keys, SMALL)
    got = augment_video(video.cuda(), aspect, keys, SMALL)
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=0)
    some = augment_video(video[:5].cuda(), aspect[:5], keys[:5], SMALL)
    # The kernel of a matrix product may depend on the batch size.
    torch.testing.assert_close(some, got[:5], atol=1e-4, rtol=0)
    plain = eval_transform_video(video.cuda(), aspect, SMALL)
    torch.testing.assert_close(plain.cpu(), eval_transform_video(video, aspect, SMALL), atol=1e-4, rtol=0)
