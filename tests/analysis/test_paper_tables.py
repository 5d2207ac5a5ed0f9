"""Tables 1, 2, 4, 5 and retrieval: rows and columns of the paper, published numbers, paired differences."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
import yaml
from scipy import stats

from analysis.make_tables import main
from analysis.studies import STUDIES, TABLES
from analysis.tables.published import rows_of
from analysis.tables.statistics import difference

from .conftest import Study
from .test_make_tables import cells, words

WIDE = {"video": {"torchvision": "r2plus1d_18"}}
PAPERS = {"video": {"depth": 18, "width": 64}}


@pytest.fixture
def make(empty_store: Path, tmp_path: Path):
    def made(name: str, table: int | str, *, scale: str = "paper") -> Study:
        shutil.copy(empty_store, tmp_path / "mlflow.db")
        return Study(tmp_path, name=name, table=table, scale=scale)

    return made


def _printed(study: Study, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    study.sync()
    assert main(["--uri", study.uri, "--out", str(study.folder / "tables"), *arguments]) == 0
    return capsys.readouterr().out


def _records(study: Study, table: str) -> list[dict[str, str]]:
    (path,) = (study.folder / "tables").glob(f"{table}-*.csv")
    return list(csv.DictReader(io.StringIO(path.read_text())))


def _async(study: Study, weight: float, top1: float, *, seed: int) -> None:
    method = {"name": "crisscross", "async_weight": weight}
    point = {"method.async_weight": weight}
    pretrained = study.pretraining("mild", seed=seed, method=method, point=point, data="kinetics400")
    study.evaluation(pretrained, {"v": top1}, data="ucf101", protocol={"name": "svm", "modalities": ["v"]})


def test_table_1_pairs_seeds_and_keeps_the_papers_numbers_apart(make, capsys) -> None:
    study = make("async", 1)
    pairs = [(0.50, 0.53), (0.60, 0.61), (0.55, 0.60)]
    for seed, (without, with_it) in enumerate(pairs):
        _async(study, 0.0, without, seed=seed)
        _async(study, 1.0, with_it, seed=seed)
    printed = _printed(study, capsys)
    row = cells(printed)["UCF101 v"]
    test = stats.ttest_rel([b for _, b in pairs], [a for a, _ in pairs])
    low, high = test.confidence_interval()
    assert row[0] == "55.0 ± 5.0 (n=3)"
    assert row[1] == "58.0 ± 4.4 (n=3)"
    assert row[2] == f"+3.0 ± {100 * (high - low) / 2:.1f} (n=3, p={test.pvalue:.2g})"
    assert row[3:] == ["75.8", "79.9", "+4.1", "-20.8", "-21.9"]
    for part in ("Difference: with less without, paired by seed", "Less paper: the measured mean less the published"):
        assert part in words(printed)
    assert cells(printed)["ESC-50 a"][:3] == ["not in the study"] * 2 + ["needs both"]  # published, not run
    measured = [record for record in _records(study, "table1") if record["source"] == "measured" and record["n"] != "0"]
    assert {len(record["run_ids"].split()) for record in measured} == {3}
    assert all(not record["run_ids"] for record in _records(study, "table1") if record["source"] == "paper")


def test_a_difference_of_one_seed_has_no_interval() -> None:
    assert difference({0: 0.6}, {0: 0.5, 1: 0.9}).text == "+10.0 (n=1)"
    assert difference({0: 0.6}, {1: 0.5}) is None
    assert difference({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6}).half_width == pytest.approx(0.0, abs=1e-9)


def test_table_2_has_a_column_a_pretraining_set_and_none_of_the_papers_at_demo_scale(make, capsys) -> None:
    study = make("dataset_size", 2, scale="demo")
    for name, top1 in (("demo_quarter", 0.3), ("demo", 0.5)):
        study.evaluation(study.pretraining("mild", data=name, point={"data": name}), {"v": top1, "a": 0.7, "av": 0.8})
    study.pretraining("mild", data="demo_half", point={"data": "demo_half"}, state="running", step=1, total=2)
    study.evaluation(study.runs[-1])
    study.evaluation(None, {"v": 0.2, "a": 0.3, "av": 0.4})
    found = cells(_printed(study, capsys))
    assert found["evaluated on"] == [
        "untrained",
        *(f"pretrained on {name}" for name in ("demo_quarter", "demo_half", "demo")),
    ]
    assert found["demo v"] == ["20.0", "30.0", "pretraining 50 %", "**50.0**"]


def test_tables_4_and_5_of_one_study(make, capsys) -> None:
    study = make("methods", "4 and 5")
    for name, top1, model in (("avid", 0.80, PAPERS), ("xdc", 0.75, WIDE)):
        point = {"method": name, "data": "kinetics400"}
        pretrained = study.pretraining("none", data="kinetics400", method={"name": name}, point=point)
        study.evaluation(
            pretrained, {"a": top1}, data="esc50", protocol={"name": "svm", "modalities": ["a"]}, model=model
        )
        tuned = {"name": "finetune", "frames": 8}
        for fold in (1, 2, 3):
            study.evaluation(pretrained, {"v": top1}, data="ucf101", protocol=tuned, folds=(fold,), model=model)
    printed = _printed(study, capsys)
    sound, action = printed.split("**Table 5.**")
    assert cells(sound)["AVID"][:1] == ["**80.0**"]
    assert "79.1" in cells(sound)["AVID"]
    assert cells(sound)["CrissCross"][0] == "not in the study"
    row = cells("**Table 5.**" + action)["AVID, Kinetics400, R(2+1)D-18, 15.4 M, 8 frames"]
    assert row == ["**80.0**", "not in the study", "83.7", "49.5", "-3.7", "needs both"]
    assert "XDC, Kinetics400, R(2+1)D-18, 31.5 M, 8 frames" in action
    assert "Frozen features" not in printed  # Table 4 has all of it
    assert "mean of folds 1, 2, 3" in words(action)


def test_retrieval_has_a_column_a_rank_in_their_order(make, capsys) -> None:
    study = make("retrieval", "retrieval", scale="demo")
    protocol = {"name": "retrieval", "modalities": ["v"], "ranks": [1, 5, 20], "distance": "cosine"}
    recalls = {"recall_at_1_v": 0.5, "recall_at_5_v": 0.7, "recall_at_20_v": 0.9}
    study.evaluation(study.pretraining("mild", point={"relaxation": "mild"}), recalls, protocol=protocol)
    study.evaluation(None, {name: value / 2 for name, value in recalls.items()}, protocol=protocol)
    printed = _printed(study, capsys, "--table", "retrieval")
    assert cells(printed)["pretraining"] == ["demo v R@1", "demo v R@5", "demo v R@20"]
    assert cells(printed)["CrissCross"] == ["50.0", "70.0", "90.0"]
    assert cells(printed)["untrained (floor)"] == ["25.0", "35.0", "45.0"]
    assert "cosine distance" in words(printed)


def test_every_study_has_its_file_and_its_script() -> None:
    root = Path(__file__).parents[2]
    for name, study in STUDIES.items():
        assert (root / study.script).is_file()
        described = yaml.safe_load((root / "experiments" / "conf" / "study" / f"{name}.yaml").read_text())
        assert (described["name"], described["script"]) == (name, study.script)
    assert list(TABLES) == ["1", "2", "3", "4", "5", "frozen", "retrieval"]


def test_the_published_numbers_are_the_papers() -> None:
    assert len(rows_of("table1")) == 5
    assert rows_of("table2")[1] == {
        "downstream": "ucf101",
        "kinetics_sound": "78.1",
        "kinetics400": "83.9",
        "audioset": "87.7",
    }
    assert len(rows_of("table5")) == 17
