"""Figures of tiny studies: all of them, reproducible bytes, and a line for each missing one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.figures.base import NotThereError
from analysis.figures.figure3_left import embed
from analysis.figures.figure3_right import Panel
from analysis.figures.style import evenly, marker_style
from analysis.make_figures import FIGURES, main
from analysis.make_report import add_to_report
from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.models.backbones import random_init_backbones
from crisscross.models.weights_io import export_backbone
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.tracking import client as mlflow_store
from crisscross.tracking.query import search_runs
from crisscross.tracking.sync import sync_runs
from tests.support import tiny_config

from .conftest import Study

ROOT = Path(__file__).parents[2]
STUDY_HASHES = {"async": "a0a0a0a0", "retrieval": "b1b1b1b1", "relaxation": "0123abcd"}


class Runs:
    """Run directories of tiny experiments whose pretrainings are random-init networks: nothing is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.pretrain = tiny_config("pretrain", folder)
        self.downstream = tiny_config("downstream", folder)
        self.retrieval = tiny_config("downstream", folder, "downstream=retrieval", "downstream.modalities=[v,a]")
        self.made: list[RunDirectory] = []

    def make(self, kind: str, config: dict, *, study: str, weight: float | None, parents=()) -> RunDirectory:
        point = {} if weight is None else {"method.async_weight": weight}
        about = {"study": study, "table": 1, "fingerprint": STUDY_HASHES[study], "launched": 1.0, "point": point}
        studies = {f"{study}.{STUDY_HASHES[study]}": about}
        self.made.append(RunDirectory.create(kind, config, parents=parents, studies=studies))
        return self.made[-1]

    def pretraining(self, *, study: str, weight: float | None, seed: int = 0) -> RunDirectory:
        method = {**self.pretrain["method"], "async_weight": 1.0 if weight is None else weight}
        config = {**self.pretrain, "method": method, "seed": seed}
        run = self.make("pretrain", config, study=study, weight=weight)
        backbones = random_init_backbones(parse(DownstreamSettings, self.downstream).model, seed=7 + int(weight or 0))
        files = {}
        for modality in ("video", "audio"):
            files[modality] = f"{modality}_backbone.pt"
            export_backbone(getattr(backbones, files[modality].removesuffix(".pt")), run.path / files[modality])
        run.write_result({"steps": 9, "metrics": {}, "backbones": files})
        return run

    def evaluation(self, parent: RunDirectory, *, weight: float, epoch: int | None = None, top1: float = 0.5) -> None:
        weights = {**self.downstream["weights"], "run": str(parent.path), "epoch": epoch}
        config = {**self.downstream, "weights": weights}
        run = self.make("downstream", config, study="async", weight=weight, parents=[parent])
        run.write_result({"metrics": {f"eval/top1_{modality}": top1 for modality in ("v", "a", "av")}})

    def sync(self) -> None:
        assert sync_runs(self.made, self.uri, "crisscross").failures == {}


@pytest.fixture(scope="module")
def tiny(empty_store, tmp_path_factory) -> Runs:
    """The three studies; ``async`` has two seeds and lacks one evaluation along a pretraining."""
    folder = tmp_path_factory.mktemp("figures")
    shutil.copy(empty_store, folder / "mlflow.db")
    runs = Runs(folder)
    for weight in (0.0, 1.0):
        for seed in (0, 1):
            parent = runs.pretraining(study="async", weight=weight, seed=seed)
            runs.evaluation(parent, weight=weight, top1=0.5 + 0.1 * weight + 0.02 * seed)
            for epoch in (0, 1) if weight or seed else (0,):
                runs.evaluation(parent, weight=weight, epoch=epoch, top1=0.3 + 0.05 * epoch)
    parent = runs.pretraining(study="retrieval", weight=None, seed=2)
    config = {**runs.retrieval, "weights": {**runs.retrieval["weights"], "run": str(parent.path)}}
    assert run_experiment(runs.make("downstream", config, study="retrieval", weight=None, parents=[parent]))
    runs.sync()
    relaxation = Study(folder)
    for seed, top1 in enumerate((0.4, 0.5)):
        relaxation.evaluation(relaxation.pretraining("mild", seed=seed), {"v": top1, "a": 0.7, "av": 0.75})
    relaxation.evaluation(relaxation.pretraining("none"), {"v": 0.5, "a": 0.7, "av": 0.75})
    relaxation.evaluation(None, {"v": 0.2, "a": 0.1, "av": 0.1})
    relaxation.sync()
    return runs


@pytest.fixture(scope="module")
def drawn(tiny, tmp_path_factory) -> dict[str, bytes]:
    """All figures, by the names of their files."""
    return _draw(tiny, tmp_path_factory.mktemp("drawn"))


def _draw(runs: Runs, out: Path, *arguments: str, code: int = 0) -> dict[str, bytes]:
    place = ["--uri", runs.uri, "--runs-root", str(runs.folder / "runs"), "--out", str(out)]
    assert main([*place, *arguments]) == code
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())} if out.exists() else {}


def test_every_figure_is_drawn_with_its_runs_in_the_caption(tiny, drawn):
    stems = {f"figure3-left-{STUDY_HASHES['async']}", f"figure3-right-{STUDY_HASHES['async']}"}
    stems |= {f"figure4-{STUDY_HASHES['async']}", f"figure5-{STUDY_HASHES['retrieval']}", "relaxation-0123abcd"}
    assert set(drawn) == {f"{stem}.{extension}" for stem in stems for extension in ("png", "pdf", "md")}
    assert all(content.startswith(b"\x89PNG") for name, content in drawn.items() if name.endswith("png"))
    assert all(content.startswith(b"%PDF") for name, content in drawn.items() if name.endswith("pdf"))
    known = search_runs("", uri=tiny.uri, experiment="crisscross")
    for stem in stems:
        text = drawn[f"{stem}.md"].decode()
        listed = [run for run in known if run["run_id"] in text]
        assert len(listed) >= (1 if "figure5" in stem else 2)
        assert all(run["tags"]["crisscross.identity"][:12] in text for run in listed)
        assert f"variant {stem[-8:]}" in text


def test_the_last_job_of_a_study_adds_its_figures_to_the_report_of_those_launched_with_it(tiny, drawn, tmp_path):
    (tmp_path / "figures").mkdir()
    for name, content in drawn.items():
        if not name.startswith("relaxation"):
            (tmp_path / "figures" / name).write_bytes(content)
    together = {**STUDY_HASHES, "methods": "c2c2c2c2"}  # of which nothing has been evaluated yet
    place = {"experiment": "crisscross", "runs_root": tiny.folder / "runs", "out": tmp_path}
    assert add_to_report(tiny.uri, study="relaxation", studies=together, **place) == 0
    assert (tmp_path / "figures" / "relaxation-0123abcd.png").read_bytes() == drawn["relaxation-0123abcd.png"]
    page = (tmp_path / "tables" / "report.html").read_text()
    assert page.count("data:image/png") == 5
    assert all(f"{name}-{STUDY_HASHES[name]}" in page for name in STUDY_HASHES)
    assert "methods" not in page.partition("</nav>")[0]


def test_captions_list_seeds_and_missing_parts(drawn):
    right = drawn["figure3-right-a0a0a0a0.md"].decode()
    assert "means over up to 2 seeds" in right
    assert "- demo, with L_async, epoch 3 (n = 2, seeds 0, 1): " in right
    assert "- demo, without L_async, epoch 1 (n = 1, seed 1): " in right
    assert "Missing:\n\n- video, demo, without L_async, epoch 1, seed 0: not run\n- audio, " in right
    left = drawn["figure3-left-a0a0a0a0.md"].decode()
    assert "- without L_async, video (n = 1, seed 0): " in left
    assert "- with L_async, audio (n = 1, seed 0): " in left
    relaxation = drawn["relaxation-0123abcd.md"].decode()
    assert "- mild (n = 2, seeds 0, 1): " in relaxation
    assert "- medium demo v: seed 0: not run; seed 1: not run" in relaxation


def test_right_and_wrong_neighbours_are_counted_as_the_csv_has_them(tiny, drawn):
    (path,) = (tiny.folder / "runs" / "downstream").glob("*retrieval*/neighbours.csv")
    table = pd.read_csv(path)
    shown = table[table["query"].isin(table.groupby("query_label")["query"].min())]
    text = drawn["figure5-b1b1b1b1.md"].decode()
    for modality in ("v", "a"):
        ours = shown[shown["modality"] == modality]
        right = (ours["query_label"] == ours["neighbour_label"]).sum()
        assert f"{right} of the {len(ours)} neighbours shown are of the query's class" in text


def test_the_same_runs_give_the_same_bytes_and_mlflow_has_them_once(tiny, drawn, tmp_path, monkeypatch):
    found = search_runs("tags.kind = 'figures'", uri=tiny.uri, experiment="crisscross")
    of = {run["tags"]["crisscross.made_of"]: run for run in found}
    assert set(of) == {f"figures {study}.{digits}" for study, digits in STUDY_HASHES.items()}
    kept = {path.name: path.read_bytes() for path in tiny.folder.glob("mlruns/crisscross/*/artifacts/figures/*")}
    assert kept == drawn
    sent = []
    monkeypatch.setattr(mlflow_store.Store, "log_file", lambda *arguments: sent.append(arguments))
    assert _draw(tiny, tmp_path / "again") == drawn
    assert sent == []
    again = search_runs("tags.kind = 'figures'", uri=tiny.uri, experiment="crisscross")
    assert [run["run_id"] for run in again] == [run["run_id"] for run in found]


def test_the_clips_to_show_may_be_chosen(tiny, drawn, tmp_path, capsys):
    path = pd.read_csv(next((tiny.folder / "runs").glob("downstream/*retrieval*/neighbours.csv")))["query"].iloc[-1]
    files = _draw(tiny, tmp_path / "one", "--figure", "5", "--clips", path)
    assert "queries are chosen by the caller" in files["figure5-b1b1b1b1.md"].decode()
    _draw(tiny, tmp_path / "none", "--figure", "4", "--clips", "nobody.mp4", code=1)
    assert "no figure 4: nobody.mp4 is no clip of demo" in capsys.readouterr().err


def test_what_is_not_there_is_a_line_and_the_others_are_drawn(study, tmp_path, capsys):
    study.evaluation(study.pretraining("mild"), {"v": 0.5, "a": 0.7, "av": 0.75})
    study.sync()
    assert main(["--uri", study.uri, "--out", str(tmp_path / "figures"), "--runs-root", str(tmp_path / "no")]) == 1
    lines = capsys.readouterr().err.splitlines()
    scripts = {"3-left": "sweep_async", "3-right": "sweep_async", "4": "sweep_async", "5": "retrieve"}
    assert len(lines) == len(scripts)
    for line, (figure, script) in zip(lines, scripts.items(), strict=True):
        assert line.startswith(f"no figure {figure}: {study.uri} has no runs of the study")
        assert line.endswith(f"`uv run launch/{script}.py` runs the study")
    assert len(list((tmp_path / "figures").iterdir())) == 3


def test_a_folder_that_is_elsewhere_and_an_arm_that_failed_are_named(tiny, tmp_path, empty_store, capsys):
    out = ["--out", str(tmp_path / "figures"), "--runs-root", str(tmp_path / "no")]
    assert main(["--uri", tiny.uri, "--figure", "4", *out]) == 1
    assert f"below {tmp_path}/no: give its folder with --runs-root" in capsys.readouterr().err
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    half = Runs.__new__(Runs)
    half.__dict__.update(tiny.__dict__, uri=f"sqlite:///{tmp_path}/mlflow.db", made=[])
    half.pretrain, half.downstream = ({**one, "runs_root": str(tmp_path)} for one in (tiny.pretrain, tiny.downstream))
    half.evaluation(half.pretraining(study="async", weight=1.0), weight=1.0)
    config = {**half.pretrain, "method": {**half.pretrain["method"], "async_weight": 0.0}}
    half.make("pretrain", config, study="async", weight=0.0).write_progress(state="failed", error="the disk is full")
    half.sync()
    for figure in ("3-left", "4"):
        assert main(["--uri", half.uri, "--figure", figure, *out]) == 1
        line = capsys.readouterr().err
        assert "the evaluation without L_async: parent failed: the disk is full; `uv run launch/sweep_async" in line
    assert not (tmp_path / "figures").exists()


def test_a_point_on_the_way_is_compared_on_the_folds_it_has():
    row = {
        "status": "FINISHED",
        "folds": (1, 2),
        "eval/top1_v": 0.6,
        "eval/top1_v_fold1": 0.5,
        "eval/top1_v_fold2": 0.7,
    }
    assert Panel({}, "v", (1,), pd.DataFrame()).value(row) == 0.5
    assert Panel({}, "v", (1, 2), pd.DataFrame()).value(row) == 0.6
    assert Panel({}, "a", (1, 2), pd.DataFrame()).value(row) is None
    assert Panel({}, "v", (1,), pd.DataFrame()).value({**row, "status": "RUNNING"}) is None


def test_an_embedding_is_the_same_twice_and_needs_some_clips():
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    features[20:] += 8
    places = embed(features)
    assert np.array_equal(places, embed(features))
    near = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.diag(np.full(40, np.inf))
    assert ((near.argmin(axis=1) < 20) == (np.arange(40) < 20)).all()
    with pytest.raises(NotThereError, match="3 held-out clips are too few"):
        embed(features[:3])


def test_choices_are_even_and_marker_styles_distinct():
    assert evenly(list("abcdefghij"), 4) == ["a", "d", "g", "j"]
    assert evenly([1, 2], 5) == [1, 2]
    assert Counter(tuple(marker_style(number).values()) for number in range(24)).most_common(1)[0][1] == 1


def test_wrong_usage_is_named(capsys):
    for arguments, what in [
        (["--figure", "5", "--study", "async"], "--figure 5 belongs to the study retrieval"),
        (["--fingerprint", "0123abcd"], "--fingerprint is of one study"),
    ]:
        with pytest.raises(SystemExit):
            main(arguments)
        assert what in capsys.readouterr().err
    assert set(FIGURES) == {"3-left", "3-right", "4", "5", "relaxation"}


def test_the_script_starts_lightly():
    heavy = {"mlflow", "pandas", "torch", "matplotlib", "sklearn"}
    code = f"import sys, analysis.make_figures; assert not {heavy} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
