"""A study begun before the modules moved (commit fc28989): it is read, resumed and tabled by today's code.

``fixtures/study-fc28989.tar.xz`` is the folder of a relaxation study of two rows on tiny clips, without its clips:

    launch/sweep_relaxation.py TINY_OVERRIDES TINY_PRETRAINING relaxation=[none]          to its end
    launch/sweep_relaxation.py TINY_OVERRIDES TINY_PRETRAINING relaxation=[none,mild]    killed at step 6 of 9

with the MLflow store as SQL text, ``@FOLDER@`` where the folder's path was, and under ``expected/`` what the same code
gives when nothing kills it: the backbones of ``mild`` and the table of both rows.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.slurm.study import Study
from tests.support import full_history, tiny_config
from tests.warm import warm_python

FIXTURE = Path(__file__).parent / "fixtures" / "study-fc28989.tar.xz"
NAMES = {
    "pretrain/crisscross-none-demo-s0-24079a102c80",
    "pretrain/crisscross-mild-demo-s0-0561e531e398",
    "downstream/untrained-s0-svm-demo-40e90514e2ed",
    "downstream/crisscross-none-demo-s0-svm-demo-2aad68c00b02",
    "downstream/crisscross-mild-demo-s0-svm-demo-a4b0d2bbb8f7",
}
MILD = "pretrain/crisscross-mild"

DEMO_OF_THEN = ("optim.larc.enabled=true", "optim.groups.base.peak=1.5e-3", "model.projector.num_layers=3")
"""Settings of the demo that have other defaults now."""


@pytest.fixture
def older(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Unpack the study into an empty folder, as if it had always been there."""
    monkeypatch.setattr(Study, "data_root", tmp_path / "data", raising=False)
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*"):
        if path.suffix in {".json", ".jsonl", ".yaml", ".txt", ".sql"}:
            path.write_text(path.read_text().replace("@FOLDER@", str(tmp_path)))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        store.executescript((tmp_path / "mlflow.sql").read_text())
    return Study(tmp_path, ("relaxation=[none,mild]", *DEMO_OF_THEN))


def tables_of(study: Study) -> dict[str, bytes]:
    """Return the files of the study's tables."""
    return {path.name: path.read_bytes() for path in (study.folder / "tables").glob("table3-*")}


def points_in_mlflow(study: Study, run_name: str, metric: str) -> list[int]:
    """Return the steps at which a run has a metric in MLflow."""
    query = "SELECT step FROM metrics JOIN runs USING (run_uuid) WHERE name = ? AND key = ? ORDER BY step"
    with closing(sqlite3.connect(study.folder / "mlflow.db")) as store:
        return [step for (step,) in store.execute(query, (run_name, metric))]


def test_tables_of_an_older_store_are_the_same_bytes(older: Study):
    before = tables_of(older)
    shutil.rmtree(older.folder / "tables")

    done = older.script("analysis/make_tables.py", "--study", "relaxation")

    assert done.returncode == 0, done.stderr
    assert len(before) == 3
    assert tables_of(older) == before


def test_an_older_study_goes_on_where_it_was_killed(older: Study):
    status = older.script("launch/status.py")
    assert status.returncode in (0, 1), status.stderr
    assert "3 of 5 done" in status.stdout

    tiny_config("pretrain", older.folder)  # makes the clips
    for pattern in (MILD, "downstream/crisscross-mild"):
        subprocess.run([*warm_python(), "-m", "launch.job", str(older.run(pattern).path)], check=True)
    launched = older.launch()

    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "5 done already" in launched.stdout
    assert {f"{path.parent.parent.name}/{path.parent.name}" for path in older.folder.glob("runs/*/*/run.json")} == NAMES
    mild = older.run(MILD)
    assert "step 6" in (mild.path / "log.txt").read_text()
    assert [step for step, _ in full_history(mild)] == list(range(1, 10))
    assert points_in_mlflow(older, "crisscross-mild-demo-s0", "loss/total") == list(range(1, 10))
    assert older.table() == (older.folder / "expected" / "table3-ce156e39.md").read_text()
    assert_same_weights(mild.path, older.folder / "expected")
    assert json.loads((mild.path / "progress.json").read_text())["state"] == "done"


def assert_same_weights(found: Path, expected: Path) -> None:
    """Compare backbones: to the last bit on the machine that made them, closely on another kind of CPU."""
    for name in ("video_backbone.pt", "audio_backbone.pt"):
        left, right = (torch.load(folder / name, weights_only=True) for folder in (found, expected))
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
