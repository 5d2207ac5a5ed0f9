"""Each dataset with each suitable protocol, end to end on miniatures at the smallest size."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crisscross.run.identity import weights_hash
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.data.miniatures import data_overrides, make_miniature
from tests.support import TINY_FINETUNING, TINY_OVERRIDES, TINY_PRETRAINING, history, tiny_config
from tests.warm import warm_python

REPOSITORY = Path(__file__).parents[2]

SVM_ESC50 = ("downstream=svm_esc50", "downstream.c_grid=[1e-3,1e-1]", "views.audio.seconds=2")
ESC50_5S = (*SVM_ESC50, "downstream.features.train_draws=2", "views.audio.seconds=5", "views.evaluation_clips=1")
LINEAR_DCASE = ("downstream=linear_dcase", "downstream.features.train_draws=3", "views.audio.seconds=2")
LINEAR = ("downstream=linear", "downstream.epochs=3")
SVM_V = ("downstream=svm", "downstream.modalities=[v]", "downstream.c_grid=[1e-3,1e-1]")
RETRIEVAL = ("downstream=retrieval", "downstream.num_neighbours=2")
FINETUNE = (*TINY_FINETUNING, "downstream.optim.groups.base.initial=0.01", "downstream.head.dropout=0.1")
ONE_EPOCH = ("training.epochs=1", "optim.groups.base.warmup_epochs=0")
FIRST = "data.folds=[1]"

CELLS: dict[str, tuple[str, tuple[str, ...], str, int | list[int], int | list[int]]] = {
    # dataset, overrides, modalities, training clips, test clips
    "esc50-svm-2s": ("esc50", (*SVM_ESC50, "downstream.features.train_draws=3"), "a", [24] * 5, [6] * 5),
    "esc50-svm-5s": ("esc50", ESC50_5S, "a", [24] * 5, [6] * 5),
    "esc50-svm-released": ("esc50", (*ESC50_5S, "downstream.select=test", "data.folds=[2,4]"), "a", [24] * 2, [6] * 2),
    "esc50-retrieval": ("esc50", (*RETRIEVAL, "downstream.modalities=[a]", FIRST), "a", 24, 6),
    "dcase-linear": ("dcase2013", (*LINEAR_DCASE, "downstream.epochs=3"), "a", 9, 9),
    "ucf101-svm": ("ucf101", SVM_V, "v", [12] * 3, [6] * 3),
    "ucf101-retrieval": ("ucf101", (*RETRIEVAL, FIRST), "v", 12, 6),
    "ucf101-finetune": ("ucf101", (*FINETUNE, FIRST), "v", 12, 6),
    "hmdb51-svm": ("hmdb51", (*SVM_V, FIRST), "v", 12, 6),
    "hmdb51-retrieval": ("hmdb51", (*RETRIEVAL, FIRST), "v", 12, 6),
    "hmdb51-finetune": ("hmdb51", (*FINETUNE, "data.folds=[3]"), "v", 12, 6),
    "kinetics-sound-linear": ("kinetics_sound", LINEAR, "v a av", 8, 4),
    "kinetics400-linear": ("kinetics400", LINEAR, "v a av", 12, 6),
}
AT_THE_COMMAND_LINE = ("esc50-svm-2s", "ucf101-retrieval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def data(folder: Path) -> Callable[[str], list[str]]:
    """Return a function that makes a miniature dataset and returns its overrides."""

    def overrides(name: str) -> list[str]:
        root = folder / name
        if not root.exists():
            make_miniature(name, root)
        return data_overrides(name, root)

    return overrides


@pytest.fixture(scope="module")
def command(folder: Path) -> Callable[..., RunDirectory]:
    """Return a function that runs an entry point and returns its run directory."""

    def run(program: str, *overrides: str) -> RunDirectory:
        sizes = [override for override in TINY_OVERRIDES if not override.startswith("data.")]
        done = subprocess.run(
            [*warm_python(), f"experiments/{program}.py", *sizes, f"runs_root={folder / 'commands'}", *overrides],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "500"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        named = re.search(r"^result: (.*)/result\.json$", done.stdout, re.MULTILINE)
        assert named, done.stdout
        return RunDirectory.open(REPOSITORY / named[1])

    return run


@pytest.fixture(scope="module")
def pretrained(data: Callable[[str], list[str]], command: Callable[..., RunDirectory]) -> RunDirectory:
    """Return a pretraining of one epoch on AudioSet, whose labels are not used elsewhere."""
    return command("pretrain", *TINY_PRETRAINING, *data("audioset"), *ONE_EPOCH)


def test_audioset_pretrains(pretrained: RunDirectory) -> None:
    steps = pretrained.result["steps"]
    assert steps == 12 // 4
    assert [step for step, _ in history(pretrained)][-1] == steps
    assert all(np.isfinite(value) for _, metrics in history(pretrained) for value in metrics.values())


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_runs_from_end_to_end(
    cell: str,
    folder: Path,
    data: Callable[[str], list[str]],
    command: Callable[..., RunDirectory],
    pretrained: RunDirectory,
) -> None:
    dataset, overrides, modalities, num_train, num_test = CELLS[cell]
    overrides = (*data(dataset), *overrides)
    if cell in AT_THE_COMMAND_LINE:
        run = command("downstream", *overrides, f"weights.run={pretrained.path}")
    else:
        run = RunDirectory.create("downstream", tiny_config("downstream", folder, *overrides), parents=[pretrained])
        assert run_experiment(run)
    result = run.result
    assert (result["num_train_clips"], result["num_test_clips"]) == (num_train, num_test)
    assert result["num_classes"] == (2 if dataset == "kinetics_sound" else 3)
    assert all(np.isfinite(value) for value in result["metrics"].values())
    for modality in modalities.split():
        _check_folds(run, modality)
    check = _check_neighbours if "retrieval" in cell else _check_predictions
    check(run, modalities.split())
    if "finetune" in cell:
        last_step, metrics = history(run)[-1]
        assert metrics.items() <= result["metrics"].items()
        assert last_step == result["steps"] + 1
    else:
        assert history(run) == []


def _names(run: RunDirectory) -> list[str]:
    return ["recall_at_1", "recall_at_5", "recall_at_20"] if "neighbours.csv" in run.result["artifacts"] else ["top1"]


def _check_folds(run: RunDirectory, modality: str) -> None:
    metrics, folds = run.result["metrics"], run.config["data"]["folds"]
    for name in _names(run):
        of_folds = [metrics[f"eval/{name}_{modality}_fold{fold}"] for fold in folds]
        if folds:
            assert metrics[f"eval/{name}_{modality}"] == pytest.approx(np.mean(of_folds))
        else:
            assert not any("_fold" in key for key in metrics)


def _check_predictions(run: RunDirectory, modalities: list[str]) -> None:
    """Compute top-1 again from the predictions per clip."""
    assert run.result["artifacts"] == ["predictions.csv"]
    table = pd.read_csv(run.path / "predictions.csv")
    folds = run.config["data"]["folds"]
    assert len(table) == np.sum(run.result["num_test_clips"])
    for modality in modalities:
        right = table["label"] == table[f"predicted_{modality}"]
        parts = {f"_fold{fold}": right[table["fold"] == fold] for fold in folds} or {"": right}
        for suffix, part in parts.items():
            assert run.result["metrics"][f"eval/top1_{modality}{suffix}"] == pytest.approx(part.mean())
            assert run.result["metrics"][f"eval/top5_{modality}{suffix}"] == 1.0  # of no more than three classes


def _check_neighbours(run: RunDirectory, modalities: list[str]) -> None:
    """Compute R@1 again from the first neighbors."""
    assert run.result["artifacts"] == ["neighbours.csv"]
    (modality,) = modalities
    table = pd.read_csv(run.path / "neighbours.csv")
    assert table["rank"].tolist() == [1, 2] * run.result["num_test_clips"]
    first, second = (table[table["rank"] == rank].reset_index(drop=True) for rank in (1, 2))
    right = (first["query_label"] == first["neighbour_label"]).mean()
    assert run.result["metrics"][f"eval/recall_at_1_{modality}"] == pytest.approx(right)
    assert (first["distance"] <= second["distance"]).all()
    assert run.result["metrics"][f"eval/recall_at_20_{modality}"] >= right
    assert not set(table["query"]) & set(table["neighbour"])


@pytest.mark.parametrize(
    ("dataset", "modalities", "message"),
    [
        ("hmdb51", "[v,a,av]", r"downstream.modalities needs audio, .* set downstream.modalities=\[v\]"),
        ("ucf101", "[a]", r"downstream.modalities needs audio, 6 of 18 clips .*HandStandPushups"),
        ("esc50", "[v]", r"downstream.modalities needs video, .* set downstream.modalities=\[a\]"),
    ],
)
def test_a_modality_that_a_dataset_lacks_is_refused(
    folder: Path, data: Callable[[str], list[str]], dataset: str, modalities: str, message: str
) -> None:
    config = tiny_config("downstream", folder, *data(dataset), f"downstream.modalities={modalities}", FIRST)
    with pytest.raises(ValueError, match=message) as caught:
        run_experiment(RunDirectory.create("downstream", config))
    assert "\n" not in str(caught.value)


def test_weight_files_and_random_initialization(
    folder: Path, data: Callable[[str], list[str]], pretrained: RunDirectory
) -> None:
    def features(weights: dict[str, Any], parents: list[RunDirectory]) -> bytes:
        config = tiny_config("downstream", folder, *data("dcase2013"), *LINEAR_DCASE, "downstream.epochs=2")
        config["weights"] |= weights
        run = RunDirectory.create("downstream", config, parents=parents)
        assert run_experiment(run)
        assert set(run.result["metrics"]) == {"eval/top1_a", "eval/top5_a"}
        return (run.path / "features" / "train" / "a.f32").read_bytes()

    file = str(pretrained.path / "audio_backbone.pt")
    released = features({"audio": file, "fingerprint": weights_hash(None, file)}, [])
    assert released == features({}, [pretrained])
    assert released != features({}, [])
