"""Evaluations end to end on tiny clips: of a pretraining, weight files and random initialization."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.figures.evaluated_run import EvaluatedRun
from crisscross import evaluate as evaluate_module
from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.data.loader import Batch
from crisscross.data.manifest import Manifest
from crisscross.evaluation import results, svm
from crisscross.models.backbones import random_init_backbones
from crisscross.run.identity import weights_hash
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training import features
from crisscross.training.augment import segment_views
from crisscross.utils.signals import SHUTDOWN
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
    assert history(evaluated) == []  # the numbers are in result.json, and bars of step 0 in MLflow
    assert evaluated.label == "crisscross-mild-demo-s0-svm-demo"


def test_exported_backbones_evaluate_like_the_run_itself(
    folder: Path, pretrained: RunDirectory, evaluated: RunDirectory
) -> None:
    files = {name: str(pretrained.path / f"{name}_backbone.pt") for name in ("video", "audio")}
    config = tiny_config("downstream", folder)
    config["weights"] |= {**files, "fingerprint": weights_hash(**files)}
    run = RunDirectory.create("downstream", config)
    assert run_experiment(run)
    assert run.result["metrics"] == evaluated.result["metrics"]
    assert run.label.startswith("released-")


def test_random_init_is_the_pretraining_before_its_first_step(folder: Path) -> None:
    start = RunDirectory.create("pretrain", tiny_config("pretrain", folder, "training.epochs=0"))
    assert run_experiment(start)
    of_start = RunDirectory.create("downstream", tiny_config("downstream", folder), parents=[start])
    untrained = RunDirectory.create("downstream", tiny_config("downstream", folder))
    assert run_experiment(of_start)
    assert run_experiment(untrained)
    assert untrained.result["metrics"] == of_start.result["metrics"]


def _features(run: RunDirectory) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in sorted(run.path.glob("features/**/*.f32"))}


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    folder: Path, pretrained: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SEGMENTS_PER_BATCH", 8)  # 4 clips
    decoded: list[int] = []
    leave_at: list[int] = []

    def views(batch: Batch, **settings: Any) -> Any:
        decoded.extend(batch.sample_ids.tolist())
        if leave_at and len(decoded) >= leave_at[0]:
            monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGTERM")
        return segment_views(batch, **settings)

    monkeypatch.setattr(features, "segment_views", views)
    whole, run = (
        RunDirectory.create(
            "downstream",
            {**tiny_config("downstream", folder, "downstream.num_folds=2"), "runs_root": str(folder / name)},
            parents=[pretrained],
        )
        for name in ("whole", "stopped")
    )
    assert run_experiment(whole)
    assert sorted(decoded) == list(range(18))
    decoded.clear()
    for leave in (8, 18):  # in the second batch of the clips, and in their last
        leave_at[:] = [leave]
        assert not run_experiment(run)
        assert run.progress["state"] == "interrupted"
        assert run.progress["signal"] == "SIGTERM"
        monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    assert sorted(decoded) == list(range(18))  # each clip once, though most are only in the training split
    leave_at.clear()
    assert run_experiment(run)
    assert len(decoded) == 18
    assert [*_features(run)] == ["features/clips/a.f32", "features/clips/v.f32"]
    assert _features(run) == _features(whole)
    assert run.result["metrics"] == whole.result["metrics"]


def test_workers_do_not_change_a_bit(folder: Path, pretrained: RunDirectory, evaluated: RunDirectory) -> None:
    config = tiny_config("downstream", folder, "execution.num_workers=2", f"runs_root={folder / 'workers'}")
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    assert run.identity == evaluated.identity
    assert run_experiment(run)
    assert _features(run) == _features(evaluated)
    assert run.result["metrics"] == evaluated.result["metrics"]


def test_training_and_test_clips_are_apart_where_only_some_are_augmented(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def views(batch: Batch, *, seed: int | None, **settings: Any) -> Any:
        seeds.append((len(batch.labels), seed is None))
        return segment_views(batch, seed=seed, **settings)

    monkeypatch.setattr(features, "segment_views", views)
    overrides = ("downstream.features.train_draws=3", "downstream.modalities=[a]", "downstream.c_grid=[0.1]")
    run = RunDirectory.create("downstream", tiny_config("downstream", folder, *overrides))
    assert run_experiment(run)
    assert seeds == [(12, False), (6, True)]
    sizes = {name: len(content) for name, content in _features(run).items()}
    assert sizes == {"features/test/a.f32": 6 * 2 * 32 * 4, "features/train/a.f32": 12 * 3 * 32 * 4}


def test_an_interrupted_cross_validation_goes_on_where_it_stopped(
    folder: Path, pretrained: RunDirectory, evaluated: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[float] = []
    original = svm.fit_svm

    def fit(*arrays: Any, c: float, **settings: Any) -> Any:
        fits.append(c)
        if len(fits) in (8, 28):
            monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGUSR2")
        return original(*arrays, c=c, **settings)

    monkeypatch.setattr(svm, "fit_svm", fit)
    config = {**tiny_config("downstream", folder), "runs_root": str(folder / "others")}
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    for expected in (8, 28):  # in the second fold of v, in the second of a
        assert not run_experiment(run)
        assert len(fits) == expected
        monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    assert run_experiment(run)
    # Modalities x (folds x values of C, and the last one); besides what was broken off, and v's last one again.
    assert len(fits) == 3 * (3 * 6 + 1) + 2 + 2
    assert run.result["metrics"] == evaluated.result["metrics"]
    assert (run.path / "predictions.csv").read_text() == (evaluated.path / "predictions.csv").read_text()


def test_an_interruption_between_two_modalities_is_heard(
    folder: Path, evaluated: RunDirectory, pretrained: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = results.Results.add_scores

    def add_scores(self: results.Results, *arguments: Any) -> None:
        original(self, *arguments)
        monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGINT")

    config = {**tiny_config("downstream", folder), "runs_root": str(folder / "between")}
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    with monkeypatch.context() as patch:
        patch.setattr(results.Results, "add_scores", add_scores)
        assert not run_experiment(run)
    assert run.result is None
    assert run.progress["signal"] == "SIGINT"
    monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    assert run_experiment(run)
    assert run.result["metrics"] == evaluated.result["metrics"]


def test_audio_that_the_clips_lack_is_refused_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = evaluate_module.open_manifest

    def without_audio(settings: Any) -> Manifest:
        manifest = original(settings)
        manifest.clips.loc[5:, ["audio_start_s", "audio_end_s"]] = np.nan
        return manifest

    monkeypatch.setattr(evaluate_module, "open_manifest", without_audio)
    run = RunDirectory.create("downstream", tiny_config("downstream", folder, "seed=5"))
    with pytest.raises(
        ValueError,
        match=r"^downstream.modalities needs audio, 13 of 18 clips have none .*: set downstream.modalities=\[v\]",
    ):
        run_experiment(run)
    assert not (run.path / "features").exists()


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
    one, other = (random_init_backbones(settings.model, seed=0) for _ in range(2))
    one.eval()
    one.video_backbone(torch.randn(2, 3, 4, 16, 16))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_features_are_those_of_the_evaluation_and_the_same_where_they_are_gone(evaluated: RunDirectory) -> None:
    held_out = EvaluatedRun(evaluated)
    assert list(held_out.fold.test["path"]) == list(pd.read_csv(evaluated.path / "predictions.csv")["path"])
    found = {modality: held_out.features(modality) for modality in ("v", "a", "av")}
    assert found["v"].shape == found["a"].shape == (6, 2, 32)
    assert np.array_equal(found["av"], np.concatenate([found["v"], found["a"]], axis=-1))
    stored = np.fromfile(evaluated.path / "features" / "clips" / "v.f32", np.float32).reshape(18, 2, 32)
    assert np.array_equal(found["v"], stored[np.sort(held_out.manifest.split("test")["clip_id"])])
    copy = evaluated.path.with_name("copy")  # in the same folder, from which it finds its pretraining
    shutil.copytree(evaluated.path, copy)
    shutil.rmtree(copy / "features")
    before = sorted(copy.iterdir())
    again = EvaluatedRun(RunDirectory(copy))
    np.testing.assert_allclose(again.features("av"), found["av"], rtol=1e-4, atol=1e-6)
    assert sorted(copy.iterdir()) == before


def test_the_middle_of_clips_as_networks_and_as_people_see_it(evaluated: RunDirectory) -> None:
    held_out = EvaluatedRun(evaluated)
    paths = [*held_out.fold.test["path"][:2]]
    seen, heard = (held_out.middle(held_out.rows(paths), stream) for stream in "va")
    assert seen.video.shape == (2, 3, 4, 24, 24)
    assert seen.frames.shape == (2, 4, 24, 24, 3)
    assert (seen.frames.min() >= 0, seen.frames.max() <= 1, seen.audio) == (True, True, None)
    assert heard.audio.shape[:3] == (2, 1, 40)
    assert heard.frames is None
    features = held_out.networks()["v"](seen.video)
    assert features.shape == (2, 32)
    assert not features.requires_grad
    with pytest.raises(ValueError, match=r"nobody\.mp4 is no clip of demo: give paths as in predictions\.csv"):
        held_out.rows(["nobody.mp4"])
