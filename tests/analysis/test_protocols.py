"""Evaluations other than the SVM, and folds, in the table of a study."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from analysis.make_tables import print_tables
from analysis.tables.measurements import Gap, Result

from .conftest import Study
from .test_make_tables import cells, words

FINETUNE = {"name": "finetune", "frames": 8}
FOLDS = (1, 2, 3)


def _fine_tune(study: Study, relaxation: str | None, *top1: float, seed: int = 0) -> None:
    parent = study.pretraining(relaxation, seed=seed) if relaxation else None
    for fold, value in zip(FOLDS, top1, strict=True):
        study.evaluation(parent, {"v": value}, protocol=FINETUNE, folds=(fold,), data="ucf101", seed=seed)


@pytest.fixture(scope="module")
def printed(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    """The table of a study that fine-tunes, as Markdown and as CSV."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    shutil.copy(empty_store, folder / "mlflow.db")
    study = Study(folder)
    _fine_tune(study, "none", 0.5, 0.6, 0.7)
    _fine_tune(study, "none", 0.6, 0.6, 0.9, seed=1)
    _fine_tune(study, None, 0.1, 0.2, 0.3)
    plans = {
        "mild": ({"top1": 0.5}, {"top1": 0.6}, {"state": "running", "step": 41, "total": 100}),
        "medium": ({"state": "running", "step": 1, "total": 10}, {}, {}),
        "mixed": ({"state": "failed", "error": "clip 7 is gone"}, {"top1": 0.9}, {"top1": 0.9}),
        "extreme": ({}, {}, {}),
    }
    for relaxation, plan in plans.items():
        parent = study.pretraining(relaxation)
        for fold, about in zip(FOLDS, plan, strict=True):
            top1 = {"v": about["top1"]} if "top1" in about else None
            progress = {key: value for key, value in about.items() if key != "top1"}
            study.evaluation(parent, top1, protocol=FINETUNE, folds=(fold,), data="ucf101", **progress)
    study.sync()
    assert print_tables(study.uri, out=folder / "tables") == 0
    files = {path.suffix: path.read_text() for path in (folder / "tables").iterdir()}
    return files[".md"], list(csv.DictReader(io.StringIO(files[".csv"])))


def test_folds_are_averaged_before_seeds(printed: tuple[str, list[dict[str, str]]]) -> None:
    markdown, records = printed
    found = cells(markdown)
    assert found["relaxation"] == ["UCF101 v", "UCF101 over floor v"]
    assert found["none"] == ["65.0 ± 7.1 (n=2)", "+40.0 (n=1)"]  # of 60 and 70; over six folds it would be 65.0 ± 13.8
    assert found["untrained (floor)"] == ["20.0", "\u2013"]
    (none,) = (record for record in records if record["row"] == "none")
    assert (none["n"], none["seeds"], none["folds"], len(none["run_ids"].split())) == ("2", "0 1", "1 2 3", 6)
    assert float(none["std"]) == pytest.approx(0.05 * 2**0.5, abs=1e-6)
    assert "pretrained on demo, evaluated on UCF101 (mean of folds 1, 2, 3);" in markdown
    assert "- UCF101: fine-tuning the video network, 8 frames" in markdown


def test_missing_folds_are_listed_and_give_no_number(printed: tuple[str, list[dict[str, str]]]) -> None:
    markdown, records = printed
    found = cells(markdown)
    assert found["mild"][:1] == ["2 of 3 folds: fold 3 running 41 %; not run"]  # seed 1 was not started
    assert found["medium"][:1] == ["0 of 3 folds: fold 1 running 10 %, folds 2, 3 queued; not run"]
    assert found["mixed"][:1] == ["2 of 3 folds: fold 1 failed; not run"]
    assert found["extreme"][:1] == ["queued, not run"]
    assert "- mild, seed 0: 2 of 3 folds: fold 3 running 41 % (the mean of those that are done: 55.0)" in markdown
    assert "- mixed, seed 0: 2 of 3 folds: fold 1 failed: clip 7 is gone (the mean of those" in markdown
    (mild,) = (record for record in records if record["row"] == "mild")
    assert (mild["mean"], mild["run_ids"], mild["n"]) == ("", "", "0")
    assert "seed 0: 2 of 3 folds: fold 3 running 41 %" in mild["missing"]


def test_every_protocol_of_a_study_has_cells(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocols = [
        ({"name": "linear", "modalities": ["a", "av"]}, {"a": 0.2, "av": 0.3}),
        (
            {"name": "retrieval", "modalities": ["v"], "ranks": [1, 20]},
            {"recall_at_1_v": 0.4, "recall_at_20_v": 0.9, "recall_at_1_v_fold1": 0.1},
        ),
        ({"name": "svm", "modalities": ["a"], "select": "test"}, {"a": 0.7}),
        ({"name": "svm", "modalities": ["a"], "select": "validation"}, {"a": 0.6}),
        ({"name": "finetune", "frames": 32}, {"v": 0.8}),
    ]
    parent = study.pretraining("mild")
    for protocol, top1 in protocols:
        study.evaluation(parent, top1, protocol=protocol, folds=(1,))
    study.sync()
    assert print_tables(study.uri, out=tmp_path / "tables") == 0
    text = capsys.readouterr().out
    found = cells(text)
    assert dict(zip(found["relaxation"], found["mild"], strict=True)) == {
        "demo (finetune) v": "80.0",
        "demo (linear) a": "20.0",
        "demo (linear) a+v": "30.0",
        "demo (retrieval) v R@1": "40.0",
        "demo (retrieval) v R@20": "90.0",
        "demo (svm) a": "60.0",
        "demo (svm, C by the test split) a": "70.0",
    }
    for part in (
        "Top-1 accuracy or R@k in %",
        "whose C was chosen on the test split",
        "evaluated on demo (fold 1);",
    ):
        assert part in words(text)


def test_fine_tunings_of_other_lengths_have_columns_of_their_own(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = study.pretraining("mild")
    for frames in (8, 32):
        study.evaluation(parent, {"v": frames / 100}, protocol={**FINETUNE, "frames": frames})
    study.sync()
    assert print_tables(study.uri, out=tmp_path / "tables") == 0
    found = cells(capsys.readouterr().out)
    by_column = dict(zip(found["relaxation"], found["mild"], strict=True))
    assert list(by_column.items()) == [("demo (8 frames) v", "8.0"), ("demo (32 frames) v", "32.0")]


def test_reasons_of_several_seeds() -> None:
    def reason(*reasons: str) -> str:
        return Result({}, (), {seed: Gap(text, "") for seed, text in enumerate(reasons)}).reason

    assert reason("queued", "not run", "queued") == "queued, not run"
    assert reason("1 of 2 folds: fold 2 queued", "not run") == "1 of 2 folds: fold 2 queued; not run"
