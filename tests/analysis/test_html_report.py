"""Every table of every study while half of it still runs: files, the page, MLflow; names full of special signs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.html_report import runs_url
from analysis.make_tables import main
from analysis.studies import STUDIES, TABLES
from crisscross.tracking import artifacts, sync
from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import search_runs
from tests.requirements import missing

from .conftest import Study
from .test_make_tables import cells, words

NAMES = {
    "async": "a0a0a0a0",
    "dataset_size": "b1b1b1b1",
    "relaxation": "c2c2c2c2",
    "methods": "d3d3d3d3",
    "retrieval": "e4e4e4e4",
}
FILES = {"1": "table1", "2": "table2", "3": "table3", "4": "table4", "5": "table5"}
ALL = {"v": 0.5, "a": 0.6, "av": 0.7}
ODD = "50%_of #1 & {more}~^"
"""A name of a dataset: signs that mean something to LaTeX and to HTML."""
ERROR = "clip C:\\a_b\\<x>$1.mp4 of 'Émile' -- \u4e2d\u6587 \u2192 cannot be decoded"
AUDIO = {"name": "svm", "modalities": ["a"]}
RETRIEVAL = {"name": "retrieval", "modalities": ["v"], "ranks": [1, 5], "distance": "cosine"}
FINETUNE = {"name": "finetune", "frames": 8}
HALF = {"state": "running", "step": 1, "total": 2}


def _async(study: Study) -> None:
    for weight in (0.0, 1.0):
        point = {"method.async_weight": weight}
        method = {"name": "crisscross", "async_weight": weight}
        pretraining = study.pretraining("mild", method=method, point=point, **(HALF if weight else {}))
        study.evaluation(pretraining, None if weight else ALL)
    study.evaluation(pretraining, epoch=2)
    study.evaluation(None, ALL)


def _dataset_size(study: Study) -> None:
    for name, progress in (("demo_half", {}), (ODD, {"state": "running", "step": 3, "total": 10})):
        study.evaluation(study.pretraining("mild", data=name, point={"data": name}), data=ODD, **progress)


def _relaxation(study: Study) -> None:
    study.evaluation(study.pretraining("none"), ALL, data=ODD)
    study.evaluation(study.pretraining("mild"), data=ODD, state="failed", error=ERROR)
    study.evaluation(study.pretraining("medium", state="running", step=41, total=100), data=ODD)
    study.evaluation(None, ALL, data=ODD)


def _methods(study: Study) -> None:
    pretraining = study.pretraining("mild", method={"name": "crisscross"}, point={"method": "crisscross"})
    study.evaluation(pretraining, ALL)
    study.evaluation(pretraining, {"a": 0.9}, data="esc50", protocol=AUDIO)
    study.evaluation(pretraining, protocol=FINETUNE, state="running", step=1, total=4)
    # None of the evaluations of these is known yet.
    study.pretraining("mild", method={"name": "avid"}, point={"method": "avid"}, state="failed", error=ERROR)
    study.pretraining("mild", method={"name": "xdc"}, point={"method": "xdc"}, **HALF)


def _retrieval(study: Study) -> None:
    for relaxation in ("mild", "none"):
        point = {"relaxation": relaxation}
        recalls = {"recall_at_1_v": 0.5, "recall_at_5_v": 0.7} if relaxation == "mild" else None
        study.evaluation(
            study.pretraining(relaxation, point=point), recalls, protocol=RETRIEVAL, **({} if recalls else HALF)
        )


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """All studies in one store, each half finished; returns the study of relaxation."""
    folder = tmp_path_factory.mktemp("half-run")
    shutil.copy(empty_store, folder / "mlflow.db")
    fill = {"async": _async, "dataset_size": _dataset_size, "methods": _methods, "retrieval": _retrieval}
    for name, what in {**fill, "relaxation": _relaxation}.items():
        study = Study(folder, name=name, study_hash=NAMES[name])
        what(study)
        study.sync()
    (folder / "figures").mkdir()
    for stem in ("relaxation-c2c2c2c2", "figure4-a0a0a0a0", "relaxation-ffffffff", "figure5-c2c2c2c2", "holiday"):
        (folder / "figures" / f"{stem}.png").write_bytes(f"picture of {stem}".encode())
        text = (
            f"**The figure {stem}.** What it <shows>.\n\nMissing:\n\n- mild: queued\n\nRuns:\n\n- none: {'0f' * 16}\n"
        )
        (folder / "figures" / f"{stem}.md").write_text(text)
    return study


def _make(store: Study, out: str, *arguments: str) -> dict[str, str]:
    figures = ["--figures", str(store.folder / "figures"), "--ui", "http://ui:5000/"]
    assert main(["--uri", store.uri, "--out", str(store.folder / out), *figures, *arguments]) == 0
    return {path.name: path.read_text() for path in sorted((store.folder / out).iterdir())}


@pytest.fixture(scope="module")
def made(store: Study) -> dict[str, str]:
    """All files, by name."""
    return _make(store, "tables")


def _stem(table: str) -> str:
    return f"{FILES.get(table, table)}-{NAMES[TABLES[table]]}"


def test_every_table_has_its_files_and_they_are_the_same_again(store, made, capsys) -> None:
    stems = [_stem(table) for table in TABLES]
    assert set(made) == {f"{stem}.{kind}" for stem in stems for kind in ("md", "csv", "tex")} | {"report.html"}
    assert _make(store, "again") == made
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("Written")) <= 120
    assert [words(printed).index(title) for title in ("**Table 1.**", "**Table 2.**", "**Table 3.**")] == sorted(
        words(printed).index(title) for title in ("**Table 1.**", "**Table 2.**", "**Table 3.**")
    )


def test_latex_of_every_table_compiles(made, tmp_path) -> None:
    if shutil.which("pdflatex") is None:
        missing("there is no pdflatex here")
    for name, text in made.items():
        if name.endswith(".tex"):
            (tmp_path / name).write_text(text)
    inputs = [rf"\input{{{name}}}\clearpage" for name in made if name.endswith(".tex")]
    head = [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{textcomp,booktabs}"]
    (tmp_path / "all.tex").write_text("\n".join([*head, r"\begin{document}", *inputs, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"Output written on all.pdf ({len(inputs)} page" in done.stdout


def test_every_table_shows_which_half_is_still_running(made) -> None:
    found = {table: cells(made[f"{_stem(table)}.md"]) for table in TABLES}
    assert found["1"]["demo v"] == ["50.0", "50.0", "pretraining 50 %", "needs both"]
    assert found["2"][f"{ODD} v"] == ["queued", "running 30 %"]
    relaxation = {row: texts[0] for row, texts in found["3"].items()}
    assert [relaxation[row] for row in ("none", "mild", "medium", "extreme")] == [
        *("50.0", "failed", "pretraining 41 %", "not run")
    ]
    assert [found["4"][row] for row in ("CrissCross", "AVID", "XDC")] == [
        ["90.0", "60.0"],
        ["parent failed"] * 2,
        ["pretraining 50 %"] * 2,
    ]
    assert [found["5"][f"{name}, demo, 8 frames"] for name in ("CrissCross", "AVID", "XDC")] == [
        ["running 25 %"],
        ["parent failed"],
        ["pretraining 50 %"],
    ]
    assert found["frozen"]["XDC, demo"][0] == "pretraining 50 %"
    assert found["retrieval"]["CrissCross (mild)"] == ["50.0", "70.0"]
    assert found["retrieval"]["CrissCross (none)"] == ["running 50 %"] * 2
    for table in TABLES:
        assert "The study is not complete: " in made[f"{_stem(table)}.md"]
    assert " ".join(f"mild, seed 0: failed: {ERROR}".split()) in made[f"{_stem('3')}.md"]


def test_the_page_has_everything_of_its_studies_and_nothing_else(store, made) -> None:
    page = made["report.html"]
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#|http://ui:5000/#/)', page)  # it needs no other file
    anchors = re.findall(r'<h3 id="([^"]+)">', page)
    assert anchors == [
        *("table1-a0a0a0a0", "figure4-a0a0a0a0", "table2-b1b1b1b1", "table3-c2c2c2c2", "relaxation-c2c2c2c2"),
        *("table4-d3d3d3d3", "table5-d3d3d3d3", "frozen-d3d3d3d3", "retrieval-e4e4e4e4"),
    ]
    assert all(f'<li><a href="#{anchor}">' in page for anchor in anchors)
    assert "What it &lt;shows&gt;." in page
    assert f'href="http://ui:5000/#/experiments/1/runs/{"0f" * 16}"' in page
    assert page.count("data:image/png") == 2
    known = {run["run_id"] for run in search_runs("", uri=store.uri, experiment="crisscross")}
    linked = set(re.findall(r"/runs/([0-9a-f]{32})", page)) - {"0f" * 16}
    assert linked
    assert linked <= known
    for name, study_hash in NAMES.items():
        assert f'<a href="#{name}-{study_hash}">{name}</a>' in page
        assert STUDIES[name].command in page
    assert runs_url("http://ui", "1", ["a", "b"]).startswith("http://ui/#/compare-runs?runs=")


def test_mlflow_keeps_what_was_written_once(store, made, tmp_path, monkeypatch, capsys) -> None:
    def kept() -> dict[str, str]:
        return {path.name: path.read_text() for path in store.folder.glob("mlruns/crisscross/*/artifacts/*/*.*")}

    place = {"uri": store.uri, "experiment": "crisscross"}
    found = search_runs("tags.kind = 'tables'", **place)
    assert {run["tags"]["crisscross.made_of"] for run in found} == {f"tables {n}.{f}" for n, f in NAMES.items()}
    (report,) = search_runs("tags.kind = 'report'", **place)
    assert report["tags"]["crisscross.made_of"] == "report all"
    assert kept() == made
    with monkeypatch.context() as patched:
        patched.setattr(sync, "open_store", None)
        patched.setattr(artifacts, "open_store", None)  # nothing is new: MLflow need not be imported
        _make(store, "once more")

    def refuse(*arguments: object, **keywords: object) -> None:
        raise TrackingError("MLflow at sqlite:///mlflow.db: attempt to write a readonly database")

    monkeypatch.setattr(artifacts, "log_artifacts_once", refuse)
    assert main(["--uri", store.uri, "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    wanted = "MLflow at sqlite:///mlflow.db: attempt to write a readonly database"
    assert line == f"what is written is not in MLflow (tables of async.a0a0a0a0): {wanted}"


def test_evaluations_of_kept_epochs_have_their_baseline_where_nothing_else_was_evaluated(study, capsys) -> None:
    for relaxation, top1 in (("none", 0.5), ("mild", 0.6)):
        pretraining = study.pretraining(relaxation)
        study.evaluation(pretraining, {"v": top1}, epoch=5, protocol={"name": "svm", "modalities": ["v"]})
    study.evaluation(None, {"v": 0.2}, protocol={"name": "svm", "modalities": ["v"]})
    study.sync()
    assert main(["--uri", study.uri, "--out", str(study.folder / "tables")]) == 0
    found = cells(capsys.readouterr().out)
    assert found["relaxation"] == ["demo (after epoch 5) v", "demo (after epoch 5) over floor v"]
    assert found["mild"] == ["**60.0**", "+40.0 (n=1)"]
    assert found["untrained (floor)"] == ["20.0", "\u2013"]
