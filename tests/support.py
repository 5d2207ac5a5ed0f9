"""What several tests need: a tiny dataset, tiny configs, and a way to compare two runs bit for bit."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.evaluation import complete
from crisscross.data.catalog import prepare, synthetic_root, synthetic_settings
from crisscross.data.synthetic.generate import generate
from crisscross.data.synthetic.spec import SyntheticSettings
from crisscross.run.metrics_log import read_metrics
from crisscross.run.run_dir import RunDirectory

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
"""Marks tests that a machine without a GPU, as CI's are, skips and names."""

TINY_OVERRIDES = (
    "data.toy.num_classes=3",
    "data.toy.train_clips_per_class=4",
    "data.toy.val_clips_per_class=0",
    "data.toy.test_clips_per_class=2",
    "data.toy.seconds=2.5",
    "data.toy.frame_size_px=32",
    "model.video.width=4",
    "model.audio.width=4",
    "views.video.num_frames=4",
    "views.video.canvas_px=[32,32]",
    "views.video.transform.crop_px=24",
    "views.audio.seconds=0.5",
    "views.evaluation_clips=2",
    "execution.num_workers=0",
    "execution.device=cpu",
    "tracking.delivery=off",
)
TINY_PRETRAINING = (
    "model.projector.hidden_dim=16",
    "model.projector.output_dim=16",
    "model.predictor.hidden_dim=8",
    "training.epochs=3",
    "training.global_batch_size=4",
    "optim.groups.base.warmup_epochs=1",
)
TINY_FINETUNING = (
    "downstream=finetune",
    "downstream.frames=4",
    "downstream.training.epochs=3",
    "downstream.training.global_batch_size=4",
    "downstream.optim.groups.base.milestone_epochs=[1,2]",
)


def tiny_config(kind: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Compose a config that runs in a second, its data prepared.

    Args:
        kind: ``pretrain`` or ``downstream``.
        folder: clips go to ``folder/data``, runs to ``folder/runs``.
        *overrides: further overrides.
    """
    chosen = [*TINY_OVERRIDES, f"data.root={folder / 'data'}", f"runs_root={folder / 'runs'}"]
    if any(override.startswith("data=") for override in overrides):  # other clips than the demo's
        chosen = [override for override in chosen if not override.startswith("data.")]
    if any(override.startswith("model=") for override in overrides):  # a network that may have no such width
        chosen.remove("model.video.width=4")
    chosen += [*(TINY_PRETRAINING if kind == "pretrain" else ()), *overrides]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose(kind, overrides=chosen), resolve=True)
    if kind == "downstream":
        config = complete(config, pretrained_on=None)
    settings = parse(DataSettings, config["data"])
    if settings.kind == "toy" and not synthetic_root(settings).exists():
        shutil.copytree(_clips(synthetic_settings(settings)).name, synthetic_root(settings))
    return {**config, "data": prepare(config["data"], progress=False)}


@functools.cache
def _clips(settings: SyntheticSettings) -> tempfile.TemporaryDirectory:
    """Make the same clips once in a process; tests get copies, as some damage theirs."""
    folder = tempfile.TemporaryDirectory(prefix="shared-clips-")
    generate(folder.name, settings, jobs=1, progress=False)
    return folder


def full_history(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    """Return (step, metrics) of a run's whole history."""
    return [(line["step"], line["metrics"]) for line in read_metrics(run.metrics_path)]


def history(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    """Return (step, metrics) of a run's whole history, less what is measured of the machine."""
    return [
        (step, {name: value for name, value in metrics.items() if not name.startswith(("time/", "system/"))})
        for step, metrics in full_history(run)
    ]


def final_state(run: RunDirectory) -> dict[str, Any]:
    """Return the state in a finished training's last checkpoint."""
    return torch.load(run.path / run.result["checkpoint"], weights_only=True)


def assert_same_state(one: Any, other: Any) -> None:
    """Compare nested states bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    else:
        assert one == other
