"""Preempted, killed, requeued, out of time, on nodes that go down: a pretraining ends as if it had been left alone."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.training.checkpoint import load_latest
from crisscross.utils.files import read_json
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import (
    Pace,
    Study,
    assert_same_results,
    assert_synced_once,
    lost_steps,
    steps_done_again,
    stop,
    stop_until_signaled,
)

pytestmark = pytest.mark.slow

ONE = ("relaxation=[none]", "study.floor=false", "study.downstream=[]", "training.epochs=45")
MARK = 15  # steps of 135 before something happens
INTERVAL_S = 1.0
OFTEN = f"execution.checkpoint_minutes={INTERVAL_S / 60}"
WRITING_S = 1.5  # what a checkpoint of this size may take on a busy machine, a step included


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("undisturbed"), ONE).compute_here()


def _launched(folder: Path, cluster: SlurmCluster, *more: str, cold: bool = False) -> tuple[Study, RunDirectory]:
    study = Study(folder, ONE, cluster, cold)
    done = study.launch(*more)
    assert done.returncode == 0, done.stdout + done.stderr
    run = study.run("pretrain/crisscross-none")
    study.wait_until_at_step(run, MARK)
    return study, run


def _preempt(study: Study, run: RunDirectory) -> str:
    """Take every node for a job of the higher partition; return it when the run is back in the queue."""
    high = study.cluster.submit("sleep 1000", "--partition=high", "--nodes=3", "--exclusive")
    stop_until_signaled(study, run)
    study.wait_until(lambda: study.jobs_of(run) in _pending(study.cluster), what="back in the queue")
    return high


def _finish(study: Study, undisturbed: Study) -> None:
    study.wait_until_idle()
    assert_same_results(study, undisturbed)
    assert_synced_once(study)


@pytest.mark.parametrize("user_signal", [False, True])
def test_preempted_by_a_higher_partition(
    tmp_path: Path, idle_slurm: SlurmCluster, undisturbed: Study, user_signal: bool
) -> None:
    idle_slurm.reconfigure(preempt_user_signal=user_signal, grace_s=10)
    study, run = _launched(tmp_path, idle_slurm, cold=not user_signal)
    times = 2 if user_signal else 1  # twice is any number; Slurm's own way takes longer
    for number in range(1, times + 1):
        study.wait_until_at_step(run, MARK * number)
        high = _preempt(study, run)
        status = study.script("launch/status.py").stdout
        assert "queued" in status
        assert f"preempted {number} time" in status
        idle_slurm.run("scancel", high)
    _finish(study, undisturbed)
    assert lost_steps(run) == [0] * times
    assert len(read_json(run.path / "launches.json")) == 1 + times


def _pending(cluster: SlurmCluster) -> list[str]:
    return [f"{row['array_job_id']}_{row['array_task_id']}" for row in cluster.squeue() if row["state"] == "PENDING"]


def _stopped(study: Study, run: RunDirectory) -> tuple[Pace, psutil.Process]:
    """Stop a run between two checkpoints; return how far it is and its process, for what strikes it next."""
    study.wait_until(lambda: bool(load_latest(run.checkpoints)), what="a checkpoint")
    return Pace.of(run), stop(run)


def _assert_little_lost(run: RunDirectory, before: Pace) -> None:
    """At most the steps of a checkpoint's interval, of one more step and of the time it takes to write one."""
    lost, allowed = steps_done_again(run, before), before.steps_per_second * (INTERVAL_S + WRITING_S)
    print(f"{lost} steps done again of {before.step}, at {before.steps_per_second:.1f} steps/s; allowed {allowed:.0f}")
    assert lost < before.step  # not from the start
    assert lost <= allowed


def test_requeued_by_hand(tmp_path: Path, idle_slurm: SlurmCluster, undisturbed: Study) -> None:
    study, run = _launched(tmp_path, idle_slurm, OFTEN)
    before, _ = _stopped(study, run)
    idle_slurm.must("scontrol", "requeue", study.jobs_of(run))
    _finish(study, undisturbed)
    assert len(read_json(run.path / "launches.json")) == 2
    _assert_little_lost(run, before)


def test_process_killed(tmp_path: Path, idle_slurm: SlurmCluster, undisturbed: Study) -> None:
    study, run = _launched(tmp_path, idle_slurm, OFTEN, cold=True)
    before, process = _stopped(study, run)
    process.kill()
    study.wait_until(lambda: (run.path / "kills.json").exists(), what="back in the queue")
    _finish(study, undisturbed)
    _assert_little_lost(run, before)


def test_node_down_and_back(tmp_path: Path, idle_slurm: SlurmCluster, undisturbed: Study) -> None:
    study, run = _launched(tmp_path, idle_slurm, OFTEN, cold=True)
    node = next(row["nodes"] for row in idle_slurm.squeue() if row["state"] == "RUNNING")
    before, _ = _stopped(study, run)
    idle_slurm.kill_node(node)
    study.wait_until(lambda: len(read_json(run.path / "launches.json")) == 2, what="started on another node")
    idle_slurm.start_node(node)
    _finish(study, undisturbed)
    _assert_little_lost(run, before)


def test_walltime_reached(tmp_path: Path, idle_slurm: SlurmCluster, undisturbed: Study) -> None:
    # Signaled 50 s before the end of a minute, or up to half a minute later.
    limits = ("cluster.resources.pretrain.timeout_min=1", "cluster.signal_seconds=50")
    study, run = _launched(tmp_path, idle_slurm, *limits)
    stop_until_signaled(study, run)
    _finish(study, undisturbed)
    assert len(read_json(run.path / "launches.json")) >= 2
    assert set(lost_steps(run)) == {0}


def test_two_nodes_of_two_tasks_preempted(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    overrides = (
        *ONE[:3],
        "training.epochs=40",
        "training.global_batch_size=8",
        "cluster.resources.pretrain.nodes=2",
        "cluster.resources.pretrain.tasks_per_node=2",
    )
    alone, preempted = (Study(tmp_path / name, overrides, idle_slurm) for name in ("alone", "preempted"))
    assert alone.launch().returncode == 0
    alone.wait_until_idle()
    idle_slurm.reconfigure(grace_s=10)
    assert preempted.launch().returncode == 0
    run = preempted.run("pretrain/crisscross-none")
    preempted.wait_until_at_step(run, 10)
    high = _preempt(preempted, run)
    idle_slurm.must("scontrol", "update", "nodename=n1", "state=drain", "reason=test")  # so that it finds other nodes
    idle_slurm.run("scancel", high)
    preempted.wait_until_idle()
    idle_slurm.must("scontrol", "update", "nodename=n1", "state=resume")
    assert "on n[2-3]" in run.log_path.read_text()
    assert_same_results(preempted, alone)
    assert lost_steps(run) == [0]
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]  # every rank has left
