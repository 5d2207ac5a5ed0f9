"""experiments/pretrain.py and experiments/downstream.py as a user runs them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from crisscross.data import catalog
from crisscross.run.identity import weights_hash
from crisscross.run.run_dir import AlreadyRunningError, RunDirectory
from crisscross.run.run_log import LogReader, Warnings, warnings_in
from launch import run_single
from launch.job.make_run import make_run
from launch.job.terminal import logging_to, showing_progress
from launch.run_single import _by_number
from launch.study.overrides import compose_config, hydra_configs
from launch.study.plan import make_plan
from tests.launch.support import config_of
from tests.support import TINY_OVERRIDES, TINY_PRETRAINING
from tests.warm import warm_python

REPOSITORY = Path(__file__).parents[2]


def _script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*warm_python(), str(REPOSITORY / name), *arguments],
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
        (
            "downstream",
            ["weights.run=x", "weights.epoch=last"],
            "weights.epoch=last: expected the number of an epoch that the pretraining has kept",
        ),
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
    arguments = [*TINY_OVERRIDES, *TINY_PRETRAINING, "training.compile=true", "training.keep_epochs=[1,9]"]
    first = _script("experiments/pretrain.py", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert [line for line in first.stderr.splitlines() if "clips" not in line] == [
        "warning: training.keep_epochs=[1,9]: 9 will not be reached, as training.epochs=3: leave out what is beyond, or"
        " raise training.epochs",
        "warning: training.compile=true is for GPUs: ignored on cpu",
    ]
    (run,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert (run / "result.json").is_file()
    assert f"result: runs/pretrain/{run.name}/result.json" in first.stdout
    again = _script("experiments/pretrain.py", *arguments, cwd=tmp_path)
    assert "done already: nothing to run" in again.stdout
    larger = _script(
        "experiments/downstream.py", *TINY_OVERRIDES, f"weights.run={run}", "model.video.width=8", cwd=tmp_path
    )
    assert larger.returncode == 2
    assert "width: 8} is not what weights.run=" in larger.stderr
    files = (f"weights.video={run / 'audio_backbone.pt'}", "downstream.modalities=[v]")
    other = _script("experiments/downstream.py", *TINY_OVERRIDES, *files, cwd=tmp_path)
    assert other.returncode == 2
    assert "holds audio weights; expected video weights; give the video file" in other.stderr
    assert not (tmp_path / "runs" / "downstream").exists()  # no failed experiment is left behind
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
    assert weights_hash(None, None) is None
    found = weights_hash(str(one), None)
    assert found == weights_hash(str(other), None)
    assert found != weights_hash(None, str(one))
    digest = hashlib.sha256(b"weights").hexdigest()
    assert found == hashlib.sha256(f"video:{digest}".encode()).hexdigest()


def test_an_evaluation_typed_by_hand_is_the_one_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "prepare", lambda data: {**data, "fingerprint": "f" * 64})
    plan = make_plan("relaxation", ["relaxation=mild"], prepare=catalog.prepare)
    pretraining, evaluation, floor = plan.graph
    parent = RunDirectory.create(pretraining.kind, pretraining.config)
    with hydra_configs():
        typed = compose_config("downstream", [f"weights.run={pretraining.path}"])
        untrained = compose_config("downstream", [])
        before = compose_config("downstream", [f"weights.run={pretraining.path}", "weights.epoch=0"])
    with pytest.raises(ValueError, match=r"not finished: run it first, or evaluate an epoch .*weights.epoch=N"):
        make_run("downstream", typed)
    unfinished = make_run("downstream", before)
    parent.write_result({"steps": 1, "metrics": {}})
    assert make_run("downstream", before).identity == unfinished.identity
    with pytest.raises(ValueError, match=r"it is an evaluation: give the run directory of a pretraining"):
        make_run("downstream", {**typed, "weights": {**typed["weights"], "run": str(unfinished.path)}})
    assert make_run("downstream", typed).identity == evaluation.identity
    assert make_run("downstream", untrained).identity == floor.identity


def test_warnings_are_shown_once_and_kept_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [*(f"{name} is passed over (missing): its clips are copied" for name in ("a.tar", "b.tar")), "c"]
    ours, other = logging.getLogger("crisscross.data.staging"), logging.getLogger("somebody.else")
    with logging_to(tmp_path / "log.txt") as warnings:
        reader = LogReader(tmp_path / "log.txt", warnings)
        for name in ("a.tar", "a.tar", "b.tar"):
            ours.warning("%s is passed over (missing):\nits clips are copied", name)
        ours.info("as planned")
        other.warning("not ours")
        with (tmp_path / "log.txt").open("a") as log:  # as another process would
            log.write(f"12:00:00 warning: {expected[1]}\n12:00:00 warning: c\n12:")
        reader.poll()
        reader.poll()
    assert capsys.readouterr().err.splitlines() == [f"warning: {text}" for text in expected]
    assert warnings_in(tmp_path / "log.txt") == expected
    assert "not ours" in (tmp_path / "log.txt").read_text()
    assert warnings_in(tmp_path / "gone.txt") == []


def test_a_warning_does_not_spoil_a_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    screen = io.StringIO()
    run = RunDirectory(tmp_path)
    run.write_progress(state="running", phase="pretraining", step=1, total=2)
    with logging_to(run.log_path), showing_progress(run, Console(file=screen, force_terminal=True, width=100)):
        logging.getLogger("crisscross").warning("look here")
    assert "warning: look here\n" in screen.getvalue()  # a line of its own, above the bar
    assert sys.stderr.getvalue() == ""


def test_names_are_sorted_as_people_count() -> None:
    names = ["eval/recall_at_20_v", "eval/recall_at_1_v_fold10", "eval/recall_at_5_v", "eval/recall_at_1_v_fold2"]
    assert [name for name, _ in sorted(((name, 0.0) for name in names), key=_by_number)] == [
        *("eval/recall_at_1_v_fold2", "eval/recall_at_1_v_fold10", "eval/recall_at_5_v", "eval/recall_at_20_v"),
    ]


def test_a_multirun_goes_on_after_a_failure(tmp_path: Path) -> None:
    arguments = ["--multirun", "weights.video=x.pt", "seed=0,1"]
    found = _script("experiments/downstream.py", *arguments, cwd=tmp_path)
    assert found.returncode == 2
    assert found.stderr.count("error: weights.video=x.pt: no such file") == 2


def test_a_failure_is_one_line_and_leaves_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.create("pretrain", config_of(tmp_path))
    errors = {"ValueError": ValueError("too few:\nraise it"), "KeyError": KeyError("x"), "OSError": OSError(28, "Full")}

    def fail(run: RunDirectory, **options: object) -> int:
        raise errors[name]

    monkeypatch.setattr(run_single, "run_experiment", fail)
    lines = ["too few: raise it", "KeyError: 'x'", f"[Errno 28] Full: make room for {run.path} and launch again"]
    for name, line in zip(errors, lines, strict=True):
        assert run_single._run(run, Console(), Warnings()) == 1
        assert capsys.readouterr().err == f"error: {line} (log: {os.path.relpath(run.log_path)})\n"
        assert (run.progress["state"], run.progress["error"]) == ("failed", line)
        assert f"{name}: " in run.log_path.read_text()


def test_what_another_process_runs_is_not_marked_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create("pretrain", config_of(tmp_path))
    run.write_progress(state="running")

    def fail(run: RunDirectory, **options: object) -> int:
        raise AlreadyRunningError("it is already running: wait for it")

    monkeypatch.setattr(run_single, "run_experiment", fail)
    assert run_single._run(run, Console(), Warnings()) == 1
    assert run.progress["state"] == "running"
