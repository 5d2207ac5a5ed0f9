"""torchvision's networks as backbones: what they compute, their files, and a whole experiment with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import video as torchvision_video

from crisscross.evaluation.layers import feature_of
from crisscross.experiment import run as run_experiment
from crisscross.models.initialisation import initialise
from crisscross.models.r2plus1d import VideoBackbone
from crisscross.models.released import export_backbone, load_audio_backbone, load_video_backbone
from crisscross.models.torchvision_video import TorchvisionBackbone
from crisscross.run_directory import RunDirectory
from crisscross.settings import ModelSettings
from tests.support import TINY_FINETUNING, TINY_OVERRIDES, tiny_config

NAMES = ("r2plus1d_18", "r3d_18")


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """torchvision's own, as it publishes its checkpoints, its statistics no longer the initial ones."""
    torch.manual_seed(0)
    built = getattr(torchvision_video, request.param)()
    built.train()(torch.randn(2, 3, 4, 16, 16))
    return built.eval()


@pytest.fixture(scope="module")
def published(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "kinetics400.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def loaded(published: Path) -> TorchvisionBackbone:
    return load_video_backbone(published).eval()


def _millions(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)


def test_the_numbers_of_table_5() -> None:
    """Those of torchvision's networks count a layer of 400 classes, the paper's own counts none."""
    with torch.device("meta"):
        wide, flat, ours = (TorchvisionBackbone(name) for name in NAMES), VideoBackbone()
        classifier = nn.Linear(512, 400)
    assert _millions(ours) == 15.4


def test_it_computes_what_torchvisions_computes(network: nn.Module, loaded: TorchvisionBackbone) -> None:
    frames = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = loaded(frames)
        torch.testing.assert_close(network.fc(features), network(frames))
        assert features.shape == (2, loaded.feature_dim)
        last = loaded.feature_map(frames)
        torch.testing.assert_close(feature_of(loaded, "max", normalise="none")(frames), last.amax(dim=(2, 3, 4)))
        third = network.layer3(network.layer2(network.layer1(network.stem(frames))))
        found = feature_of(loaded, "conv4x", normalise="none")(frames)
        torch.testing.assert_close(found, third.mean(dim=(2, 3, 4)))


def test_pooling_and_wrong_input(loaded: TorchvisionBackbone) -> None:
    assert loaded.extra_repr() == f"torchvision={loaded.architecture}, pool='avg'"
    with pytest.raises(ValueError, match=r"pool='sum': expected one of \['avg', 'max'\]"):
        TorchvisionBackbone("r3d_18", pool="sum")
    with pytest.raises(ValueError, match=r"expected \(B, 3, T, H, W\)"):
        loaded(torch.zeros(1, 4, 3, 8, 8))
