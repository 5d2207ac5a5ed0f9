"""A job whose ranks have ended without a result: requeued, failed or left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_json
from launch.job import requeue, slurm
from launch.job.slurm import SlurmJobInfo
from launch.slurm.assignments import Assignment, SbatchCall, slurm_folder, write_assignment
from launch.study.record import assignment_path
from tests.launch.support import config_of

RUNNING = SlurmJobInfo(True, True, False)
PREEMPTED = SlurmJobInfo(True, True, True)
CANCELLED = SlurmJobInfo(True, False, False)
SILENT = SlurmJobInfo(False, False, False)


class Here:
    """An array task whose srun has ended, and a Slurm that obeys."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = RunDirectory.create("pretrain", config_of(root))
        write_json(self.run.path / "launches.json", [{"slurm_job": "12_3"}])
        slurm_folder(root).mkdir()
        self.call = SbatchCall.create(root, kind="pretrain", runs={3: self.run.path}, dependency=None)
        write_assignment(assignment_path(self.run.path), Assignment(self.call, 3))
        self.job, self.requeues, self.waits, self.refuses = RUNNING, 0, 0, False
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        monkeypatch.setattr(slurm, "query_job", lambda: self.job)
        monkeypatch.setattr(slurm, "_requeue", self._requeue)
        monkeypatch.setattr(slurm.time, "sleep", self._wait)

    def _requeue(self) -> bool:
        self.requeues += not self.refuses
        return not self.refuses

    def _wait(self, seconds: float) -> None:
        self.waits += seconds > 1000

    def ended(self, code: int, **progress: Any) -> int:
        self.run.write_progress(**progress)
        return requeue.main([str(self.call.folder), str(code)])

    @property
    def state(self) -> str:
        return self.run.progress["state"]

    @property
    def left(self) -> str:
        return read_json(self.run.path / "launches.json")[-1]["left"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path, monkeypatch)


def test_walltime_is_near(here: Here) -> None:
    write_json(here.run.path / "durable.json", {"history_step": 5, "metrics_bytes": 0})
    assert here.ended(75, state="interrupted", signal="SIGUSR2", step=5, total=9) == 75
    assert (here.requeues, here.state, here.left) == (1, "queued", "SIGUSR2")
    assert here.run.progress["step"] == 5


def test_preempted_without_a_warning_stays_until_it_is_killed(here: Here) -> None:
    here.job = PREEMPTED
    assert here.ended(75, state="interrupted", signal="SIGTERM") == 75
    assert (here.requeues, here.waits, here.state, here.left) == (0, 1, "queued", "preempted")


def test_preempted_with_a_warning_goes_back_at_once(here: Here) -> None:
    here.job = PREEMPTED
    here.ended(75, state="interrupted", signal="SIGUSR2")
    assert (here.requeues, here.waits, here.left) == (1, 0, "preempted")


@pytest.mark.parametrize("code", [137, 143, 76, 1])
def test_killed_within_the_grace_it_stays_too(here: Here, code: int) -> None:
    here.job = PREEMPTED
    assert here.ended(code, state="running") == code
    assert (here.requeues, here.waits) == (0, 1)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGUSR2"])
@pytest.mark.parametrize("code", [75, 137])
def test_a_cancelled_job_is_never_queued_again(here: Here, signal_name: str, code: int) -> None:
    here.job = CANCELLED
    assert here.ended(code, state="interrupted", signal=signal_name) == code
    assert (here.requeues, here.waits, here.state) == (0, 0, "interrupted")


def test_somebodys_sigterm_ends_it(here: Here) -> None:
    assert here.ended(75, state="interrupted", signal="SIGTERM") == 75
    assert (here.requeues, here.waits, here.state) == (0, 0, "interrupted")


@pytest.mark.parametrize("code", [137, 139, 140, 76])
def test_killed_it_goes_on_from_its_checkpoint(here: Here, code: int) -> None:
    assert here.ended(code, state="running", step=51, total=90) == code
    assert (here.requeues, here.state, here.run.progress["step"]) == (1, "queued", 0)
    assert f"killed (exit code {code}): resumes from the start" in here.run.log_path.read_text()
    write_json(here.run.path / "durable.json", {"history_step": 40, "metrics_bytes": 0})
    here.ended(code, state="running", step=51, total=90)
    assert here.run.progress["step"] == 40
    assert "resumes from the checkpoint at step 40" in here.run.log_path.read_text()


def test_killed_again_and_again_at_the_same_place_it_has_failed(here: Here) -> None:
    for step in (10, 20, 20):  # it comes further, then not any more
        write_json(here.run.path / "durable.json", {"history_step": step, "metrics_bytes": 0})
        here.ended(137, state="running")
    assert here.requeues == 3
    assert here.ended(137, state="running") == 137
    assert here.requeues == 3
    assert here.run.progress["error"].startswith("killed 3 times at the same place (exit code 137; out of memory?)")
    assert here.ended(137, state="running") == 137  # launched again: as many tries again
    assert here.requeues == 4


def test_a_failure_stays_a_failure(here: Here) -> None:
    assert here.ended(137, state="failed", error="clip 7 is damaged") == 137  # other ranks were killed after it
    assert (here.requeues, here.state) == (0, "failed")
    assert here.ended(1, state="queued") == 1  # it wrote no failure
    assert here.requeues == 0


def test_with_a_result_nothing_else_matters(here: Here) -> None:
    here.run.write_result({})
    assert here.ended(137, state="running") == 0
    assert here.requeues == 0


def test_what_was_given_to_another_job_is_left_alone(here: Here) -> None:
    assignment_path(here.run.path).unlink()
    assert here.ended(75, state="interrupted", signal="SIGUSR2") == 75
    assert here.requeues == 0


def test_a_refused_requeue_leaves_it_interrupted(here: Here) -> None:
    here.refuses = True
    assert here.ended(75, state="interrupted", signal="SIGUSR2") == 75
    assert here.state == "interrupted"


def test_a_slurm_that_does_not_answer_is_asked_for_a_requeue_all_the_same(here: Here) -> None:
    here.job = SILENT
    here.ended(75, state="interrupted", signal="SIGUSR2")
    assert here.requeues == 1
