from __future__ import annotations

import csv
import io
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.make_tables import main, print_tables
from crisscross.tracking.query import search_runs
from crisscross.tracking.sync import set_latest_tag

from .conftest import Study

ROOT = Path(__file__).parents[2]


def cells(text: str) -> dict[str, list[str]]:
    """Parse a printed table: the cells of each row by its label, over all of its blocks."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        label, *texts = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not set(label) <= set("-"):
            found.setdefault(label, []).extend(texts)
    return found


def words(text: str) -> str:
    """Undo the wrapping of a printed text."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def filled(empty_store, tmp_path_factory) -> Study:
    """A study with finished runs, and missing ones for every possible reason."""
    folder = tmp_path_factory.mktemp("filled")
    shutil.copy(empty_store, folder / "mlflow.db")
    study = Study(folder)
    for seed, top1 in enumerate((0.50, 0.61, 0.58)):
        study.evaluation(study.pretraining("none", seed=seed), {"v": top1, "a": 0.7, "av": 0.75})
    study.evaluation(study.pretraining("mild"), {"v": 0.5, "a": 0.70004, "av": 0.9})
    study.evaluation(study.pretraining("mild", seed=1), state="failed", error="clip 7_b.mp4 cannot be decoded")
    study.evaluation(study.pretraining("mild", seed=2), state="running", step=1, total=4)
    study.evaluation(study.pretraining("medium", state="running", step=41, total=100))
    study.evaluation(study.pretraining("mixed", state="failed", error="the disk is full"))
    study.pretraining("video_extreme", state="interrupted", step=1, total=4)
    study.evaluation(None, {"v": 0.8, "a": 0.1, "av": 0.1})
    study.sync()
    return study


def _written(folder: Path, extension: str) -> Path:
    """Return the table file with that extension, of any variant."""
    (path,) = folder.glob(f"table3-????????.{extension}")
    return path


def test_the_table_of_a_study(filled, tmp_path, capsys):
    assert main(["--uri", filled.uri, "--out", str(tmp_path / "tables")]) == 0
    printed = capsys.readouterr().out
    found = cells(printed)
    assert list(found) == [
        "relaxation",
        "none",
        "mild",
        "medium",
        "mixed",
        "extreme",
        "video_extreme",
        "untrained (floor)",
    ]
    measured = ["demo v", "demo a", "demo a+v"]
    assert found["relaxation"] == [*measured, *(name.replace("demo", "demo over floor") for name in measured)]
    values = [0.50, 0.61, 0.58]
    mean, std = 100 * statistics.mean(values), 100 * statistics.stdev(values)
    assert found["none"][:3] == [f"**{mean:.1f} ± {std:.1f} (n=3)**", "**70.0 ± 0.0 (n=3)**", "75.0 ± 0.0 (n=3)"]
    assert found["none"][3:] == ["-30.0 (n=1)", "+60.0 (n=1)", "+65.0 (n=1)"]  # the baseline has only seed 0
    assert found["mild"][:3] == ["50.0", "**70.0**", "**90.0**"]  # 70.0 and 70.004 print alike: both are best
    assert found["medium"] == ["pretraining 41 %, not run"] * 3 + ["needs both"] * 3  # seeds 1 and 2: never started
    assert found["mixed"][:3] == ["parent failed, not run"] * 3
    assert found["extreme"][:3] == ["not run"] * 3
    assert found["video_extreme"][:3] == ["parent interrupted, not run"] * 3
    # The baseline is the highest of one column, but not bold.
    assert found["untrained (floor)"] == ["80.0", "10.0", "10.0", *["\u2013"] * 3]
    assert "- mild, seed 1: failed: clip 7_b.mp4 cannot be decoded" in printed
    assert "- mild, seed 2: running 25 %" in printed
    assert "- mixed, seed 0: parent failed: the disk is full" in printed
    assert (
        "The study is not complete: 6 of 9 pretrainings are done (1 running, 1 failed, 1 interrupted);"
        " 5 of 9 evaluations are done (1 running, 2 queued, 1 failed)." in words(printed)
    )
    for part in ("demo scale", "linear SVM", "up to 3", "no published number", "not comparable"):
        assert part in words(printed)
    assert max(map(len, printed.splitlines()[:-2])) <= 120
    assert cells(_written(tmp_path / "tables", "md").read_text()) == found


def test_every_number_leads_back_to_its_runs(filled, tmp_path):
    print_tables(filled.uri, out=tmp_path / "tables")
    rows = list(csv.DictReader(io.StringIO(_written(tmp_path / "tables", "csv").read_text())))
    assert len(rows) == 7 * 3
    known = {run["run_id"]: run for run in search_runs("", uri=filled.uri, experiment="crisscross")}
    for row in rows:
        behind = [known[run_id]["metrics"][row["metric"]] for run_id in row["run_ids"].split()]
        assert len(behind) == int(row["n"])
        if behind:
            assert float(row["mean"]) == pytest.approx(statistics.mean(behind), abs=1e-6)
        else:
            assert row["missing"]
    (none,) = (row for row in rows if row["row"] == "none" and row["modality"] == "a")
    assert float(none["gain_over_floor_points"]) == pytest.approx(60.0)
    assert (none["seeds"], none["is_best"]) == ("0 1 2", "true")
    (baseline,) = (row for row in rows if row["row"] == "untrained (floor)" and row["modality"] == "v")
    assert (baseline["is_floor"], baseline["is_best"], baseline["gain_over_floor_points"]) == ("true", "false", "")


def test_the_same_runs_give_the_same_bytes(filled, tmp_path):
    files = []
    for out in ("first", "second"):
        assert main(["--uri", filled.uri, "--out", str(tmp_path / out), "--figures", str(tmp_path)]) == 0
        filled.sync()  # nothing new
        files.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) == 4


def test_one_seed_has_no_spread(study, tmp_path, capsys):
    study.evaluation(study.pretraining("mild"), {"v": 0.5, "a": 0.7, "av": 0.9})
    study.sync()
    assert main(["--uri", study.uri, "--out", str(tmp_path / "tables"), "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert cells(printed)["mild"] == ["50.0", "70.0", "90.0"]  # one row has no best
    assert "One seed a cell (n = 1), so there is no ±." in words(printed)
    assert [path.suffix for path in (tmp_path / "tables").iterdir()] == [".csv"]


def test_results_of_different_protocols_or_data_never_share_a_column(study, tmp_path, capsys):
    parent, other = study.pretraining("mild"), study.pretraining("none", data="more")
    study.evaluation(parent, {"v": 0.1, "a": 0.1, "av": 0.1})
    study.evaluation(parent, {"v": 0.2, "a": 0.2, "av": 0.2}, num_clips=1)
    study.evaluation(other, {"v": 0.3, "a": 0.3, "av": 0.3})
    study.evaluation(parent, {"v": 0.4, "a": 0.4, "av": 0.4}, data="clips")
    study.evaluation(None, {"v": 0.05, "a": 0.05, "av": 0.05})
    study.sync()
    assert print_tables(study.uri, out=tmp_path / "tables") == 0
    found = cells(capsys.readouterr().out)
    columns = [name for name in found["relaxation"] if "over floor" not in name]
    assert len(columns) == len(set(columns)) == 4 * 3
    mild, none, baseline = (
        dict(zip(columns, found[row], strict=False)) for row in ("mild", "none", "untrained (floor)")
    )
    assert sorted(cell for cell in mild.values() if cell != "not run") == ["10.0"] * 3 + ["20.0"] * 3 + ["40.0"] * 3
    assert {name: cell for name, cell in none.items() if cell != "not run"} == {
        f"demo (pretrained on more) {modality}": "30.0" for modality in ("v", "a", "a+v")
    }
    # The baseline is the same evaluation of random-init backbones, whatever the pretraining data.
    assert sorted(baseline.values()) == ["5.0"] * 6 + ["not in the study"] * 6
    assert {name.split(" [")[0].rpartition(" ")[0] for name in columns} >= {"clips", "demo (pretrained on more)"}


def test_the_variant_launched_last_is_shown_and_the_others_named(study, tmp_path, capsys):
    study.evaluation(study.pretraining("mild"), {"v": 0.5, "a": 0.5, "av": 0.5})
    study.sync()
    newer = Study(tmp_path, study_hash="89abcdef", launched=2.0, scale="paper")
    newer.evaluation(newer.pretraining("mild", seed=4), {"v": 0.6, "a": 0.6, "av": 0.6})
    newer.sync()
    out = ["--uri", study.uri, "--out", str(tmp_path / "tables")]
    assert main(out) == 0
    printed = capsys.readouterr().out
    assert cells(printed)["mild"] == ["60.0"] * 3
    assert "paper scale" in words(printed)
    assert "not comparable" not in words(printed)
    assert "uv run analysis/make_tables.py --study relaxation --fingerprint 0123abcd" in printed
    assert "0123abcd" not in _written(tmp_path / "tables", "md").read_text()
    set_latest_tag("relaxation", "0123abcd", uri=study.uri, experiment="crisscross")
    assert main(out) == 0
    assert cells(capsys.readouterr().out)["mild"] == ["50.0"] * 3
    assert main([*out, "--fingerprint", "89abcdef"]) == 0
    assert cells(capsys.readouterr().out)["mild"] == ["60.0"] * 3
    assert main([*out, "--fingerprint", "ffffffff"]) == 1
    assert "has no variant ffffffff: there are 89abcdef, 0123abcd" in capsys.readouterr().err


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_nothing_to_show_is_one_line(study, tmp_path, capsys):
    out = ["--out", str(tmp_path / "tables")]
    for uri, what in [
        (f"sqlite:///{tmp_path}/none.db", "there is no such store"),
        (study.uri, "no experiment crisscross"),
        ("http://127.0.0.1:9", "refused"),
    ]:
        assert main(["--uri", uri, *out]) == 1
        line = one_line(capsys)
        assert what in line
        assert ("is the server up?" if what == "refused" else "`uv run launch/sweep_relaxation.py`") in line
    assert main(["--uri", "mlruns", *out]) == 1
    assert "is no MLflow store" in one_line(capsys)
    set_latest_tag("relaxation", "89abcdef", uri=study.uri, experiment="crisscross")
    assert main(["--uri", study.uri, *out]) == 1
    assert "has no runs of the study relaxation" in one_line(capsys)
    study.pretraining("mild")
    study.sync()
    assert main(["--uri", study.uri, *out]) == 1
    assert "1 pretrainings but no evaluation yet" in one_line(capsys)
    assert not (tmp_path / "tables").exists()


def test_a_table_that_cannot_be_written_is_printed(filled, tmp_path, capsys):
    (tmp_path / "tables").write_text("a file, no folder")
    assert main(["--uri", filled.uri, "--out", str(tmp_path / "tables")]) == 1
    captured = capsys.readouterr()
    assert cells(captured.out)["mild"][:3] == ["50.0", "**70.0**", "**90.0**"]
    wanted = f"the table is not written: {tmp_path}/tables: File exists: give a folder you can write\n"
    assert captured.err == wanted


def test_wrong_formats_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--format", "md,doc"])
    assert "'md,doc': give some of md,csv,tex" in capsys.readouterr().err


def test_the_script_starts_lightly_from_its_own_folder(tmp_path):
    code = "import sys, analysis.make_tables; assert not {'mlflow', 'pandas', 'torch'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
    script = subprocess.run(
        [sys.executable, ROOT / "analysis" / "make_tables.py"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert script.returncode == 1
    assert script.stderr.startswith("no table: MLflow at sqlite:///mlflow.db: there is no such store; `uv run launch/")
    assert not any(tmp_path.iterdir())
