"""Evaluations end to end on tiny clips: of a pretraining, of released files, of untrained backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from crisscross.data.loader import Batch
from crisscross.evaluation import features, svm
from crisscross.experiment import run as run_experiment
from crisscross.identity import weights_fingerprint
from crisscross.models.backbones import untrained_backbones
from crisscross.run_directory import RunDirectory
from crisscross.settings import DownstreamSettings
from crisscross.settings_base import parse
from crisscross.training.interruption import INTERRUPTION
from crisscross.training.views import segment_views
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


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    folder: Path, pretrained: RunDirectory, evaluated: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("downstream", folder, "downstream.num_folds=2")
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    monkeypatch.setattr(features, "VIDEOS_PER_BATCH", 4)
    looked: list[int] = []

    def views_until(last: int) -> Any:
        def views(batch: Batch, **settings: Any) -> Any:
            looked.extend(batch.clip_ids.tolist())
            if last in batch.clip_ids:
                monkeypatch.setattr(INTERRUPTION, "signal_name", "SIGTERM")
            return segment_views(batch, **settings)

        return views

    for last in (5, 10):  # in the second batch of the training clips, and in their last
        monkeypatch.setattr(features, "segment_views", views_until(last))
        assert not run_experiment(run)
        assert run.progress["state"] == "interrupted"
        assert run.progress["signal"] == "SIGTERM"
        monkeypatch.setattr(INTERRUPTION, "signal_name", None)
    assert looked == list(range(12))  # each clip once
    monkeypatch.setattr(features, "segment_views", segment_views)
    assert run_experiment(run)
    assert [path.name for path in sorted((run.path / "features").glob("*.npz"))] == ["test.npz", "train.npz"]
    monkeypatch.setattr(features, "VIDEOS_PER_BATCH", 16)
    for split in ("train", "test"):
        kept, whole = (np.load(some.path / "features" / f"{split}.npz") for some in (run, evaluated))
        assert np.array_equal(kept["labels"], whole["labels"])
        assert np.allclose(kept["video"], whole["video"], rtol=1e-4, atol=1e-6)  # batches of another size


def test_an_interrupted_cross_validation_goes_on_where_it_stopped(
    folder: Path, pretrained: RunDirectory, evaluated: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("downstream", folder)
    fits: list[float] = []
    original = svm._fit

    def fit(*arrays: Any, c: float, seed: int) -> Any:
        fits.append(c)
        if len(fits) in (4, 9):
            monkeypatch.setattr(INTERRUPTION, "signal_name", "SIGUSR2")
        return original(*arrays, c=c, seed=seed)

    monkeypatch.setattr(svm, "_fit", fit)
    run = RunDirectory.create("downstream", {**config, "runs_root": str(folder / "others")}, parents=[pretrained])
    for expected in (4, 9):
        assert not run_experiment(run)
        assert len(fits) == expected
        monkeypatch.setattr(INTERRUPTION, "signal_name", None)
    assert run_experiment(run)
    assert len(fits) == 3 * (6 * 3 + 1)  # modalities x (values of C x folds, and the last one): none twice
    assert run.result["metrics"] == evaluated.result["metrics"]


def test_parts_after_a_gap_or_a_damage_are_passed_over(tmp_path: Path) -> None:
    def part(num_clips: int) -> features.Features:
        rows = np.zeros((num_clips, 1, 2), np.float32)
        return features.Features(rows, rows, np.zeros(num_clips, np.int64))

    parts = features.Parts(tmp_path / "train.parts")
    assert parts.load() == []
    for first in (0, 4, 12):
        parts.save(part(4), first=first)
    assert [len(some.labels) for some in parts.load()] == [4, 4]
    (tmp_path / "train.parts" / "0000004-0000008.npz").write_bytes(b"torn")
    assert [len(some.labels) for some in parts.load()] == [4]


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
