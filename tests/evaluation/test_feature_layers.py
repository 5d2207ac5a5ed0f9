"""Features of a backbone's layers, against the paper's sizes and a literal computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from crisscross.evaluation.feature_layers import feature_of
from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.r2plus1d import VideoBackbone

FRAMES_PER_SECOND, MELS = 100, 80


@pytest.fixture(scope="module")
def audio() -> AudioBackbone:
    torch.manual_seed(0)
    return AudioBackbone(width=4).eval()


@pytest.fixture(scope="module")
def video() -> VideoBackbone:
    torch.manual_seed(0)
    return VideoBackbone(depth=10, width=4).eval()


def _feature(backbone: nn.Module, layer: str, x: torch.Tensor, *, normalize: str = "none") -> np.ndarray:
    with torch.inference_mode():
        return feature_of(backbone, layer, normalize=normalize)(x).numpy()


@pytest.mark.parametrize(("seconds", "values"), [(2, 4608), (5, 10752), (1, 1536)])
def test_the_map_has_as_many_values_as_in_the_paper(seconds: int, values: int) -> None:
    spectrogram = torch.zeros(1, 1, MELS, seconds * FRAMES_PER_SECOND + 1)
    with torch.device("meta"):  # sizes alone: no computation
        backbone = AudioBackbone().eval()
    found = feature_of(backbone, "map", normalize="last_axis")(spectrogram.to("meta"))
    assert found.shape == (1, values)


@pytest.mark.parametrize("normalize", ["none", "last_axis", "feature"])
def test_the_map_is_what_loops_compute(audio: AudioBackbone, normalize: str) -> None:
    x = torch.randn(2, 1, MELS, 2 * FRAMES_PER_SECOND + 1)
    with torch.inference_mode():
        last = audio.feature_map(x).numpy().astype(np.float64)
    num, channels, bands, columns = last.shape
    expected = []
    for clip in range(num):
        values = []
        for channel in range(channels):
            for band in range(bands):
                line = last[clip, channel, band]
                pooled = [max(line[first : first + 3]) for first in range(0, columns - 2, 2)]
                length = math.hypot(*pooled) if normalize == "last_axis" else 1.0
                values += [value / max(length, 1e-12) for value in pooled]
        length = math.hypot(*values) if normalize == "feature" else 1.0
        expected.append([value / length for value in values])
    assert np.allclose(_feature(audio, "map", x, normalize=normalize), expected, rtol=1e-5, atol=1e-7)


def test_pooled_layers_are_means_and_maxima(audio: AudioBackbone, video: VideoBackbone) -> None:
    inputs = {audio: torch.randn(2, 1, MELS, 101), video: torch.randn(2, 3, 8, 40, 40)}
    for backbone, x in inputs.items():
        with torch.inference_mode():
            last = backbone.feature_map(x).flatten(2).numpy()
            usual = backbone(x).numpy()
        assert np.allclose(_feature(backbone, "pooled", x), last.mean(axis=2), atol=1e-6)
        assert np.allclose(_feature(backbone, "pooled", x), usual, atol=1e-6)
        assert np.allclose(_feature(backbone, "max", x), last.max(axis=2))
        for normalize in ("last_axis", "feature"):
            unit = _feature(backbone, "pooled", x, normalize=normalize)
            lengths = np.linalg.norm(last.mean(axis=2), axis=1, keepdims=True)
            assert np.allclose(unit, last.mean(axis=2) / lengths, atol=1e-6)


def test_stages_go_by_their_names(audio: AudioBackbone, video: VideoBackbone) -> None:
    x = torch.randn(2, 3, 8, 40, 40)
    expected = nn.functional.max_pool3d(video.conv1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for name in ("conv2x", "conv3x", "conv4x", "conv5x"):
        expected = video.get_submodule(name)(expected)
        assert np.allclose(_feature(video, name, x), expected.detach().numpy().mean(axis=(2, 3, 4)), atol=1e-6)
    x = torch.randn(2, 1, MELS, 101)
    expected = nn.functional.max_pool2d(audio.conv1(x), 3, 2, 1)
    for name in ("block1", "block2", "block3", "block4"):
        expected = audio.get_submodule(name)(expected)
        assert np.allclose(_feature(audio, name, x), expected.detach().numpy().mean(axis=(2, 3)), atol=1e-6)
    assert np.allclose(_feature(audio, "block4", x), _feature(audio, "pooled", x), atol=1e-6)


def test_a_stage_leaves_no_hook_behind(audio: AudioBackbone) -> None:
    for _ in range(2):
        _feature(audio, "block2", torch.randn(1, 1, MELS, 101))
    with pytest.raises(ValueError, match="audio"):
        _feature(audio, "block2", torch.randn(1, 3, MELS, 101))
    assert not any(module._forward_hooks for module in audio.modules())


def test_a_map_too_short_to_be_pooled_is_refused(audio: AudioBackbone) -> None:
    with pytest.raises(
        ValueError,
        match=r"downstream.features.audio_layer=map needs a last map of 3 columns or more, it has 2:"
        r" raise views.audio.seconds$",
    ):
        _feature(audio, "map", torch.randn(1, 1, MELS, 51))
    assert _feature(audio, "map", torch.randn(1, 1, MELS, 65)).shape == (1, 32 * 3)  # three columns are enough
