"""Predicted sizes against the real networks and the real files."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn

from crisscross.experiment import run as run_experiment
from crisscross.methods.base import ClipFacts, build_method
from crisscross.models.backbones import build_video
from crisscross.models.layers import Layer, linear, norm, num_parameters, video_layers
from crisscross.models.released import export_backbone
from crisscross.models.sizes import backbones_bytes, checkpoint_bytes, checkpoints_bytes, method_layers
from crisscross.optim.build import build_optimizer
from crisscross.run_directory import RunDirectory
from crisscross.settings import DownstreamSettings, PretrainSettings
from crisscross.settings_base import parse
from crisscross.training.checkpoint import CheckpointWriter, checkpoint_path
from tests.support import TINY_FINETUNING, tiny_config

ODD = (
    "model.video.depth=34",
    "model.video.width=5",
    "model.audio.layers=[3,1,2,1]",
    "model.audio.width=7",
    "model.projector.hidden_dim=33",
    "model.projector.output_dim=17",
    "model.projector.num_layers=1",
    "model.predictor.hidden_dim=3",
)
SHALLOW = ("model.video.depth=10", "model.audio.layers=[1,1,1,4]", "model.projector.num_layers=4")
SIZES = {"demo": (), "paper": ("scale=paper",), "odd": ODD, "shallow": SHALLOW}
WIDE = {"r2plus1d_wide": 31_300_125, "r3d18": 33_166_272}
SUPERVISED = {f"supervised {size}": ("method=supervised", *SIZES[size]) for size in ("demo", "odd")}

CLIPS = ClipFacts(num_clips=12, num_classes=3)


def _settings(*overrides: str) -> PretrainSettings:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("pretrain", overrides=list(overrides)), resolve=True)
    return parse(PretrainSettings, config)


def _unallocated(settings: PretrainSettings) -> nn.Module:
    options = {key: value for key, value in settings.method.items() if key != "name"}
    method = importlib.import_module(f"crisscross.methods.{settings.method['name']}").Method
    with torch.device("meta"):
        return method(settings.model, CLIPS, **options)


def _trained_state(settings: PretrainSettings, *, steps: int = 1) -> dict[str, Any]:
    """What the loop hands to the writer after a step."""
    method = build_method(settings.method, settings.model, CLIPS, seed=0)
    optimizer = build_optimizer(settings.optim, method.parameter_groups())
    for _ in range(steps):
        for parameter in method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=settings.training.precision == "fp16")
    return {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}


def _written_bytes(folder: Path, state: dict[str, Any]) -> int:
    writer = CheckpointWriter(folder / "checkpoints")
    writer.save(1, state, metrics_bytes=0)
    writer.wait()
    return checkpoint_path(folder / "checkpoints", 1).stat().st_size


def _is_close(predicted: int, real: int) -> bool:
    """Within 2 %, and at most 1 % below."""
    return 0.99 * real <= predicted <= 1.02 * real


@pytest.mark.parametrize("size", [*SIZES, *SUPERVISED])
def test_the_number_of_parameters_is_exact(size: str) -> None:
    settings = _settings(*{**SIZES, **SUPERVISED}[size])
    real = sum(parameter.numel() for parameter in _unallocated(settings).parameters())
    assert num_parameters(method_layers(settings, CLIPS)) == real


@pytest.mark.parametrize("model", WIDE)
def test_every_tensor_of_torchvisions_networks_is_known(model: str) -> None:
    video = _settings(f"model={model}").model.video
    with torch.device("meta"):
        network = build_video(video)
    layers = video_layers(video)
    assert num_parameters(layers) == WIDE[model]
    assert sorted(size for layer in layers for size in layer.parameters) == sorted(
        parameter.numel() for parameter in network.parameters()
    )
    assert sorted(size for layer in layers for size in layer.buffers) == sorted(
        buffer.numel() * buffer.element_size() for buffer in network.buffers()
    )


def test_a_momentum_encoder_is_saved_and_has_no_moments() -> None:
    assert linear(3, 5).untrained() == Layer(buffers=(60, 20))
    assert norm(2).untrained().buffers == (8, 8, 8, 8, 8)


def test_a_method_that_is_not_known_counts_as_the_largest() -> None:
    settings = _settings()
    expected = checkpoint_bytes(settings, CLIPS)
    unknown = settings.model_copy(update={"method": {"name": "unknown"}})
    assert checkpoint_bytes(unknown, CLIPS) == expected


def test_at_the_papers_size() -> None:
    settings = _settings("scale=paper")
    assert num_parameters(method_layers(settings, CLIPS)) == 49_662_080
    method = _unallocated(settings)
    saved = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    moments = sum(2 * 4 * parameter.numel() + 4 for parameter in method.parameters())
    assert saved + moments <= checkpoint_bytes(settings, CLIPS) <= 1.01 * (saved + moments)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.precision=fp16",),
        ("optim.larc.enabled=false",),
        ("optim.name=sgd",),
        SHALLOW,
        ("method=avid", "method.num_negatives=3"),
        ("method=cmacc", "method.dictionary_size=8"),
        ("method=supervised",),
        ("method=xdc", "method.num_clusters=8"),
    ],
    ids=lambda overrides: " ".join(overrides) or "demo",
)
def test_a_checkpoint_is_as_large_as_predicted(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    settings = _settings(*overrides)
    assert _is_close(checkpoint_bytes(settings, CLIPS), _written_bytes(tmp_path, _trained_state(settings)))


def test_a_checkpoint_without_a_step_has_no_moments(tmp_path: Path) -> None:
    settings = _settings("training.epochs=0", "training.keep_epochs=[3]", "optim.groups.base.warmup_epochs=0")
    assert _is_close(checkpoint_bytes(settings, CLIPS), _written_bytes(tmp_path, _trained_state(settings, steps=0)))
    assert checkpoints_bytes(settings, CLIPS) == checkpoint_bytes(settings, CLIPS) + backbones_bytes(
        settings.model, "av"
    )


def test_exported_backbones_are_as_large_as_predicted(tmp_path: Path) -> None:
    settings = _settings()
    method = build_method(settings.method, settings.model, CLIPS, seed=0)
    for modality in ("video", "audio"):
        export_backbone(method.get_submodule(f"{modality}_backbone"), tmp_path / f"{modality}.pt")
    real = sum(path.stat().st_size for path in tmp_path.glob("*.pt"))
    assert _is_close(backbones_bytes(settings.model, "av"), real)


@pytest.mark.parametrize(
    ("keep_epochs", "num"),
    [("[]", 3), ("[1,2]", 5), ("[2,2]", 4), ("[0,3,4]", 3)],  # 3 is the end, 4 never comes
)
def test_what_stays_on_disk_is_counted(tmp_path: Path, keep_epochs: str, num: int) -> None:
    settings = _settings("training.epochs=3", f"training.keep_epochs={keep_epochs}")
    assert checkpoints_bytes(settings, CLIPS) == num * checkpoint_bytes(settings, CLIPS) + backbones_bytes(
        settings.model, "av"
    )


def test_no_more_checkpoints_than_counted_are_there_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps an epoch, a checkpoint every fourth step and at the end of epochs 1 and 2; those two are kept."""
    most = 0
    prune = CheckpointWriter._prune

    def counting(writer: CheckpointWriter) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("checkpoints/*.pt"))))
        prune(writer)

    monkeypatch.setattr(CheckpointWriter, "_prune", counting)
    writer = CheckpointWriter(tmp_path / "checkpoints", keep_steps=[10, 20, 30])
    for step in (4, 8, 10, 14, 18, 20, 24, 28, 30):
        writer.save(step, {"weights": torch.zeros(3)}, metrics_bytes=0)
    writer.wait()
    settings = _settings("training.epochs=3", "training.keep_epochs=[1,2]")
    assert most * checkpoint_bytes(settings, CLIPS) == checkpoints_bytes(settings, CLIPS) - backbones_bytes(
        settings.model, "av"
    )


def test_predicting_needs_no_torch() -> None:
    code = "import crisscross.models.sizes, crisscross.settings, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_fine_tuning_is_as_large_as_predicted(tmp_path: Path) -> None:
    run = RunDirectory.create(
        "downstream", tiny_config("downstream", tmp_path, *TINY_FINETUNING, "model.video.width=16")
    )
    assert run_experiment(run)
    settings = parse(DownstreamSettings, run.config)
    newest = max(run.checkpoints.glob("*.pt"))
    assert _is_close(checkpoint_bytes(settings, None), newest.stat().st_size)
    exported = checkpoints_bytes(settings, None) - 3 * checkpoint_bytes(settings, None)
    assert _is_close(exported, (run.path / "classifier.pt").stat().st_size)
