"""The test cluster itself: what the Slurm tests rely on."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.slurm.cluster import SlurmCluster
from tests.slurm.daemons import wait_for


def test_a_job_runs_and_its_exit_code_is_on_record(idle_slurm: SlurmCluster) -> None:
    good, bad = idle_slurm.submit("srun hostname"), idle_slurm.submit("exit 3")
    idle_slurm.wait_for_states(good, "COMPLETED")
    idle_slurm.wait_for_states(bad, "FAILED")
    wanted = {f"{good}|COMPLETED|0:0|lab", f"{bad}|FAILED|3:0|lab"}
    sacct = ("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,Account", "-j", f"{good},{bad}")
    wait_for(lambda: set(idle_slurm.must(*sacct).splitlines()) == wanted, what=f"{wanted} in sacct", timeout_s=300)


def test_array_tasks_share_nodes(idle_slurm: SlurmCluster) -> None:
    job = idle_slurm.submit("sleep 60", "--array=0-15")
    assert set(idle_slurm.wait_for_states(job, "RUNNING")) == {f"{job}_{task}" for task in range(16)}
    assert {row["nodes"] for row in idle_slurm.squeue()} <= {"n1", "n2", "n3"}


def test_preemption_requeues_a_job(idle_slurm: SlurmCluster) -> None:
    idle_slurm.reconfigure(grace_s=1)
    whole = ("--nodes=3", "--exclusive")
    # A job that ends by itself within the grace time is over, not requeued: this one must be killed.
    low = idle_slurm.submit('trap "" TERM; sleep "$((SLURM_RESTART_COUNT ? 0 : 60))"', *whole)
    idle_slurm.wait_for_states(low, "RUNNING")
    high = idle_slurm.submit("sleep 1", "--partition=high", *whole)
    idle_slurm.wait_for_states(high, "COMPLETED", timeout_s=300)
    idle_slurm.wait_for_states(low, "COMPLETED", timeout_s=300)
    assert "Restarts=1" in idle_slurm.must("scontrol", "show", "job", low)


def test_a_dead_node_is_noticed_and_comes_back(idle_slurm: SlurmCluster, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    job = idle_slurm.submit(
        f"(setsid sh -c 'while sleep 0.1; do date +%N > {beat}; done' &); sleep 300", "--nodelist=n2"
    )
    idle_slurm.wait_for_states(job, "RUNNING")
    wait_for(beat.exists, what="the job's first sign of life", timeout_s=300)
    idle_slurm.kill_node("n2")
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last, "a process of the job, even a daemon of its own, outlived its node"
    wait_for(
        lambda: idle_slurm.must("sinfo", "-h", "-p", "low", "-n", "n2", "-o", "%T").startswith("down"),
        what="n2 down",
        timeout_s=300,
    )
    idle_slurm.start_node("n2")
    idle_slurm.wait_until_up()
    idle_slurm.wait_for_states(job, "RUNNING", timeout_s=300)
    assert "Restarts=1" in idle_slurm.must("scontrol", "show", "job", job)


def test_the_site_refuses(idle_slurm: SlurmCluster) -> None:
    unknown = idle_slurm.run("sbatch", "--account=nobody", "--wrap=true")
    assert unknown.returncode == 1
    assert "Invalid account" in unknown.stderr
    too_long = idle_slurm.run("sbatch", "--partition=short", "--time=10", "--wrap=true")
    assert "Requested time limit is invalid" in too_long.stderr
    idle_slurm.limit_submissions(2)
    assert idle_slurm.run("sbatch", "--array=0-1", "--hold", "--wrap=true").returncode == 0
    assert "AssocMaxSubmitJobLimit" in idle_slurm.run("sbatch", "--wrap=true").stderr


def test_the_environment_is_all_that_a_command_needs(idle_slurm: SlurmCluster) -> None:
    done = subprocess.run(["sbatch", "--parsable", "--output=/dev/null", "--wrap=true"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    idle_slurm.wait_for_states(done.stdout.strip(), "COMPLETED")
    assert Path(idle_slurm.environment()["SLURM_CONF"]).is_file()
