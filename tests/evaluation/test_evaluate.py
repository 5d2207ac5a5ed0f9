"""Evaluations end to end on tiny clips: of a pretraining, of released files, of untrained backbones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from crisscross.experiment import run as run_experiment
from crisscross.identity import weights_fingerprint
from crisscross.models.backbones import untrained_backbones
from crisscross.run_directory import RunDirectory
from crisscross.settings import DownstreamSettings, parse
from crisscross.training.interruption import INTERRUPTION
from tests.support import history, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> RunDirectory:
    run = RunDirectory.create("pretrain", tiny_config("pretrain", folder))
    assert run_experiment(run)
    return run


@pytest.fixture(scope="module")
def evaluated(folder: Path, pretrained: RunDirectory) -> RunDirectory:
    run = RunDirectory.create("downstream", tiny_config("downstream", folder), parents=[pretrained])
    assert run_experiment(run)
    return run


def test_result_metrics_and_predictions_agree(evaluated: RunDirectory) -> None:
    result = evaluated.result
    table = pd.read_csv(evaluated.path / "predictions.csv")
    assert len(table) == result["num_test_clips"] == 6
    assert result["num_train_clips"] == 12
    for modality in ("v", "a", "av"):
        right = (table["label"] == table[f"predicted_{modality}"]).mean()
        assert result["metrics"][f"eval/top1_{modality}"] == pytest.approx(right)
        assert result["metrics"][f"eval/top5_{modality}"] == 1.0
    assert history(evaluated) == [(1, result["metrics"])]
    assert evaluated.label == "crisscross-mild-demo-s0-svm-demo"


def test_exported_backbones_evaluate_like_the_run_itself(
    folder: Path, pretrained: RunDirectory, evaluated: RunDirectory
) -> None:
    files = {name: str(pretrained.path / f"{name}_backbone.pt") for name in ("video", "audio")}
    config = tiny_config("downstream", folder)
    config["weights"] |= {**files, "fingerprint": weights_fingerprint(**files)}
    run = RunDirectory.create("downstream", config)
    assert run_experiment(run)
    assert run.result["metrics"] == evaluated.result["metrics"]
    assert run.label.startswith("released-")


def test_untrained_is_the_pretraining_before_its_first_step(folder: Path) -> None:
    start = RunDirectory.create("pretrain", tiny_config("pretrain", folder, "training.epochs=0"))
    assert run_experiment(start)
    of_start = RunDirectory.create("downstream", tiny_config("downstream", folder), parents=[start])
    untrained = RunDirectory.create("downstream", tiny_config("downstream", folder))
    assert run_experiment(of_start)
    assert run_experiment(untrained)
    assert untrained.result["metrics"] == of_start.result["metrics"]


def test_features_once_extracted_are_kept(
    folder: Path, pretrained: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("downstream", folder, "downstream.num_folds=2")
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    monkeypatch.setattr(INTERRUPTION, "signal_name", "SIGTERM")
    assert not run_experiment(run)
    assert run.progress["state"] == "interrupted"
    monkeypatch.setattr(INTERRUPTION, "signal_name", None)
    assert run_experiment(run)
    with np.load(run.path / "features" / "train.npz") as stored:
        assert stored["video"].shape == (12, 2, 32)


def test_weights_of_another_size_are_refused(folder: Path, pretrained: RunDirectory) -> None:
    config = tiny_config("downstream", folder, "model.video.width=8")
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    with pytest.raises(
        ValueError, match=r"video_backbone.pt holds .*width=4.*asks for .*width=8.*set scale= or model="
    ):
        run_experiment(run)


def test_an_unfinished_parent_is_refused(folder: Path) -> None:
    parent = RunDirectory.create("pretrain", tiny_config("pretrain", folder, "seed=7"))
    run = RunDirectory.create("downstream", tiny_config("downstream", folder), parents=[parent])
    with pytest.raises(ValueError, match="crisscross-mild-demo-s7 is not finished: run it first"):
        run_experiment(run)


def test_evaluation_does_not_change_the_backbones(folder: Path) -> None:
    settings = parse(DownstreamSettings, tiny_config("downstream", folder))
    one, other = (untrained_backbones(settings.model, seed=0) for _ in range(2))
    one.eval()
    one.video_backbone(torch.randn(2, 3, 4, 16, 16))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
