"""experiments/pretrain.py and experiments/downstream.py as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.data import catalogue
from crisscross.identity import weights_fingerprint
from crisscross.run_directory import RunDirectory
from launch.overrides import compose_config, hydra_configs
from launch.single import _make_run
from launch.study import make_plan
from tests.support import TINY_OVERRIDES, TINY_PRETRAINING

REPOSITORY = Path(__file__).parents[2]


def _script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pretrain", ["relaxatoin=mild"], "relaxatoin=mild: there is no setting relaxatoin: did you mean relaxation?"),
        ("pretrain", ["scale=huge"], "scale=huge: no such choice: use one of demo, paper"),
        ("pretrain", ["seed=-1"], "seed=-1: expected 0 or more"),
        (
            "pretrain",
            ["relaxation=none,mild"],
            "several values for a setting: add --multirun to run one experiment for each",
        ),
        (
            "pretrain",
            ["--multirun", "epochs=1,2"],
            "epochs=1: there is no setting epochs: did you mean training.epochs?",
        ),
        ("downstream", ["relaxation=mild"], "relaxation=mild: relaxation is a setting of pretrain experiments only"),
        ("downstream", ["weights.epoch=3"], "weights.epoch=3 is an epoch of a pretraining: set weights.run, too"),
        ("downstream", ["weights.run="], "weights.run is empty: give a path, or leave it out"),
        ("downstream", ["weights.video=x.pt"], "weights.video=x.pt: no such file: give a file of released weights"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, name: str, arguments: list[str], message: str) -> None:
    found = _script(f"experiments/{name}.py", *arguments, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {message}")
    assert found.stderr.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".log"]  # nothing was prepared or made


@pytest.mark.slow
def test_pretrain_then_evaluate_then_again(tmp_path: Path) -> None:
    arguments = [*TINY_OVERRIDES, *TINY_PRETRAINING]
    first = _script("experiments/pretrain.py", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert (run / "result.json").is_file()
    assert f"result: runs/pretrain/{run.name}/result.json" in first.stdout
    again = _script("experiments/pretrain.py", *arguments, cwd=tmp_path)
    assert "done already: nothing to run" in again.stdout
    child = _script("experiments/downstream.py", *TINY_OVERRIDES, f"weights.run={run}", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert "eval/top1_av" in child.stdout
    (evaluation,) = (tmp_path / "runs" / "downstream").iterdir()
    assert json.loads((evaluation / "run.json").read_text())["parents"] == [f"../../pretrain/{run.name}"]


@pytest.mark.slow
def test_the_sweep_runs_as_a_script(tmp_path: Path) -> None:
    small = (*TINY_OVERRIDES, "training.global_batch_size=4")
    found = _script("launch/sweep_relaxation.py", *small, "dry_run=true", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "11 experiments (5 pretrainings, 6 evaluations), 0 done already" in found.stdout
    assert not (tmp_path / "runs").exists()
    assert "dry_run=true" in _script("launch/sweep_relaxation.py", "-h", cwd=tmp_path).stdout


def test_weights_are_known_by_what_the_files_hold(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert weights_fingerprint(None, None) is None
    found = weights_fingerprint(str(one), None)
    assert found == weights_fingerprint(str(other), None)
    assert found != weights_fingerprint(None, str(one))
    digest = hashlib.sha256(b"weights").hexdigest()
    assert found == hashlib.sha256(f"video:{digest}".encode()).hexdigest()


def test_an_evaluation_typed_by_hand_is_the_one_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "prepare", lambda data: {**data, "fingerprint": "f" * 64})
    plan = make_plan("relaxation", ["relaxation=mild"], prepare=catalogue.prepare)
    pretraining, evaluation, floor = plan.graph
    RunDirectory.create(pretraining.kind, pretraining.config).write_result({"steps": 1, "metrics": {}})
    with hydra_configs():
        typed = compose_config("downstream", [f"weights.run={pretraining.path}"])
        untrained = compose_config("downstream", [])
    assert _make_run("downstream", typed).identity == evaluation.identity
    assert _make_run("downstream", untrained).identity == floor.identity


def test_a_multirun_goes_on_after_a_failure(tmp_path: Path) -> None:
    arguments = ["--multirun", "weights.video=x.pt", "seed=0,1"]
    found = _script("experiments/downstream.py", *arguments, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stderr.count("error: weights.video=x.pt: no such file") == 2
