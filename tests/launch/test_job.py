from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from launch.resources import num_processes
from tests.launch.support import config_of

REPOSITORY = Path(__file__).parents[2]

_WITH_FAKE_EXPERIMENT = """
import sys, types
fake = types.ModuleType("crisscross.run_experiment")
def run(directory, patience_s=1.0):
{body}
fake.run = run
fake.work_of = lambda kind: run
sys.modules["crisscross.run_experiment"] = fake
from launch.job.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def _run_job(run: RunDirectory, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = _WITH_FAKE_EXPERIMENT.format(body=f"    {body}")
    return subprocess.run(
        [sys.executable, "-c", script, str(run.path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create("pretrain", config_of(tmp_path))


def test_exit_code_0_means_that_there_is_a_result(run: RunDirectory) -> None:
    assert _run_job(run, "directory.write_result({})").returncode == 0


def test_exit_code_75_means_interrupted(run: RunDirectory) -> None:
    assert _run_job(run, "return False").returncode == 75
    assert _run_job(run, "return True").returncode == 75  # without a result there is no success


def test_a_failure_is_one_line_and_its_traceback_is_in_the_log(run: RunDirectory) -> None:
    found = _run_job(run, "raise ValueError('training.epochs=0: too few: raise it')")
    assert found.returncode == 1
    assert found.stderr == "training.epochs=0: too few: raise it\n"
    assert run.progress["state"] == "failed"
    assert run.progress["error"] == "training.epochs=0: too few: raise it"
    assert "Traceback (most recent call last)" in run.log_path.read_text()


def test_a_failure_is_reported_even_if_the_log_cannot_be_written(run: RunDirectory) -> None:
    run.log_path.mkdir()
    found = _run_job(run, "raise OSError(28, 'No space left on device')")
    assert (found.returncode, found.stderr) == (
        1,
        f"[Errno 28] No space left on device: make room for {run.path} and launch again\n",
    )
    assert run.progress["error"] == found.stderr.strip()


def test_an_evaluation_is_one_process_on_any_number_of_devices(tmp_path: Path) -> None:
    config = config_of(tmp_path, execution={"device": "cpu", "num_devices": 2, "num_threads": 1})
    assert num_processes(config) == 2
    del config["method"]
    config.update(weights={"run": None, "video": None, "audio": None}, downstream={"name": "svm"})
    assert num_processes(config) == 1
    assert _run_job(RunDirectory.create("downstream", config), "directory.write_result({})").returncode == 0


def test_a_bug_says_what_kind_of_error_it_is(run: RunDirectory) -> None:
    found = _run_job(run, "raise KeyError('x')")
    assert (found.returncode, found.stderr) == (1, "KeyError: 'x'\n")


def test_a_job_whose_launcher_is_gone_does_not_start(run: RunDirectory) -> None:
    assert _run_job(run, "directory.write_result({})", CRISSCROSS_LAUNCHER="1").returncode == 75
    assert run.result is None


def test_what_is_no_run_directory_is_said_in_one_line(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "launch.job", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert found.stderr == (
        f"{tmp_path} is no run directory (no config.yaml): launch a study, or give a folder below runs/\n"
    )


def test_threads_are_those_of_the_config(tmp_path: Path) -> None:
    from launch.resources import job_environment

    execution = {"device": "cpu", "num_devices": 1, "num_threads": 3}
    environment = job_environment(config_of(tmp_path, execution=execution), gpus=("1", "2"))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert json.loads(environment["CRISSCROSS_LAUNCHER"]) == os.getpid()
