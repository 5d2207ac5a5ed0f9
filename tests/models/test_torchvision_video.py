"""torchvision's networks as backbones: outputs, files, and a whole experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import video as torchvision_video

from crisscross.config.experiment import ModelSettings
from crisscross.evaluation.feature_layers import feature_of
from crisscross.models.r2plus1d import VideoBackbone
from crisscross.models.torchvision_video import TorchvisionBackbone
from crisscross.models.weights_io import export_backbone, load_audio_backbone, load_video_backbone
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.support import TINY_FINETUNING, tiny_config

NAMES = ("r2plus1d_18", "r3d_18")


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Return one of torchvision's networks with running statistics that are not the initial ones."""
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
    """The counts of torchvision include a layer of 400 classes, the paper's own does not."""
    with torch.device("meta"):
        assert _millions(VideoBackbone()) == 15.4
        for name, in_table, without in (("r2plus1d_18", 31.5, 31.3), ("r3d_18", 33.4, 33.2)):
            backbone = TorchvisionBackbone(name)
            assert _millions(backbone) == without
            assert _millions(nn.Sequential(backbone, nn.Linear(512, 400))) == in_table


@pytest.mark.parametrize("name", NAMES)
def test_sizes_of_the_last_map(name: str) -> None:
    """At 112 px and, as in fine-tuning, at 224 px."""
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name)
        assert backbone.feature_map(torch.empty(1, 3, 8, 112, 112)).shape == (1, 512, 1, 7, 7)
        assert backbone.feature_map(torch.empty(1, 3, 32, 224, 224)).shape == (1, 512, 4, 14, 14)


def test_it_computes_what_torchvisions_computes(network: nn.Module, loaded: TorchvisionBackbone) -> None:
    frames = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = loaded(frames)
        torch.testing.assert_close(network.fc(features), network(frames))
        assert features.shape == (2, loaded.feature_dim)
        last = loaded.feature_map(frames)
        torch.testing.assert_close(feature_of(loaded, "max", normalize="none")(frames), last.amax(dim=(2, 3, 4)))
        third = network.layer3(network.layer2(network.layer1(network.stem(frames))))
        found = feature_of(loaded, "conv4x", normalize="none")(frames)
        torch.testing.assert_close(found, third.mean(dim=(2, 3, 4)))


def test_pooling_and_wrong_input(loaded: TorchvisionBackbone) -> None:
    assert loaded.extra_repr() == f"torchvision={loaded.architecture}, pool='avg'"
    with pytest.raises(ValueError, match=r"pool='sum': expected one of \['avg', 'max'\]"):
        TorchvisionBackbone("r3d_18", pool="sum")
    with pytest.raises(ValueError, match=r"expected \(B, 3, T, H, W\)"):
        loaded(torch.zeros(1, 4, 3, 8, 8))


def test_a_file_of_torchvisions_is_known_by_its_names(
    network: nn.Module, loaded: TorchvisionBackbone, tmp_path: Path
) -> None:
    assert [name for name in network.state_dict() if name not in loaded.state_dict()] == ["fc.weight", "fc.bias"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    export_backbone(loaded, tmp_path / "video.pt")
    before = torch.get_rng_state()
    again = load_video_backbone(tmp_path / "video.pt", pool="max")
    assert torch.equal(before, torch.get_rng_state())
    assert (again.architecture, again.pool, again.training) == (loaded.architecture, "max", True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_unfit_files_are_one_line(loaded: TorchvisionBackbone, published: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    state = dict(loaded.state_dict())
    wrong = {
        r"missing layer4.1.conv2.1.bias; unexpected nothing": {
            name: tensor for name, tensor in state.items() if name != "layer4.1.conv2.1.bias"
        },
        rf"stem.1.bias has shape \(3,\); expected \(.*,\) at {loaded.architecture}; check": {
            **state,
            "stem.1.bias": torch.ones(3),
        },
    }
    for message, content in wrong.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_video_backbone(path)
    with pytest.raises(ValueError, match="holds video weights; expected audio weights"):
        load_audio_backbone(published)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"torchvision": "mc3_18"}, r"video.torchvision.torchvision\n.*'r2plus1d_18' or 'r3d_18'"),
        ({"torchvision": "r3d_18", "width": 4}, r"width\n.*Extra inputs"),
        ({"depth": 10}, r"video.paper.width\n.*required"),
    ],
)
def test_settings(video: dict[str, object], message: str) -> None:
    heads = {"projector": {"hidden_dim": 4, "output_dim": 4, "num_layers": 1}, "predictor": {"hidden_dim": 2}}
    with pytest.raises(ValueError, match=message):
        ModelSettings(video=video, audio={"layers": (1, 1, 1, 1), "width": 4}, **heads)


@pytest.mark.slow
def test_pretraining_evaluation_and_fine_tuning(tmp_path: Path) -> None:
    """At full size: a step of pretraining, features of the stages, a step of fine-tuning, its test."""
    wide = ("model=r3d18", "model.audio.layers=[1,1,1,1]")
    few = ("data.toy.num_classes=2", "data.toy.train_clips_per_class=2", "data.toy.test_clips_per_class=2")
    once = ("training.epochs=1", "optim.groups.base.warmup_epochs=0")
    run = RunDirectory.create("pretrain", tiny_config("pretrain", tmp_path, "method=supervised", *wide, *few, *once))
    assert run_experiment(run)
    for protocol in (
        ("downstream.modalities=[v]", "downstream.features.video_layer=conv5x", "downstream.num_folds=2"),
        (*TINY_FINETUNING, "downstream.training.epochs=1", "downstream.optim.groups.base.milestone_epochs=[]"),
    ):
        config = tiny_config("downstream", tmp_path, *protocol, *wide, *few)
        evaluation = RunDirectory.create("downstream", config, parents=[run])
        assert run_experiment(evaluation)
        assert "eval/top1_v" in evaluation.result["metrics"]
