"""What Slurm or the machine refuses is one clear line; nothing is half done, and the same command works afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import Study

pytestmark = pytest.mark.slow

SMALL = ("relaxation=[none,mild]", "study.floor=false")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("cluster.partition=mars", "Slurm refuses pretrain jobs: invalid partition specified: mars"),
        ("cluster.account=nobody", "Slurm refuses pretrain jobs: "),
        ("cluster.resources.pretrain.gpus_per_node=99", "Slurm refuses pretrain jobs: "),
        ("cluster.resources.pretrain.cpus_per_task=9999", "Slurm refuses pretrain jobs: "),
        ("cluster.partition=short", "Slurm refuses pretrain jobs: "),
    ],
)
def test_impossible_requests(tmp_path: Path, idle_slurm: SlurmCluster, override: str, complaint: str) -> None:
    study = Study(tmp_path, SMALL, idle_slurm)
    done = study.launch(override)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert lines[0].endswith("; nothing was submitted")
    assert not idle_slurm.squeue()
    dry = study.launch(override, "dry_run=true")
    assert dry.returncode == 1
    assert "Slurm about pretrain jobs: refused: " in dry.stdout
    again = study.launch("+cluster.additional_parameters.hold=true")
    assert "submitted 4 experiments in 3 sbatch call(s)" in again.stdout
    idle_slurm.cancel_everything()


def test_refused_halfway(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, SMALL, idle_slurm)
    idle_slurm.limit_submissions(3)
    done = study.launch("+cluster.additional_parameters.hold=true")
    assert done.returncode == 1
    assert "submitted 2 experiments in 1 sbatch call(s)" in done.stdout
    assert "Slurm refused: " in done.stdout
    names = "crisscross-none-demo-s0-svm-demo, crisscross-mild-demo-s0-svm-demo"
    assert f"not submitted: 2 experiments ({names}), nor the table" in done.stdout
    idle_slurm.limit_submissions(None)
    again = study.launch("+cluster.additional_parameters.hold=true")
    assert "2 experiments are queued or running already" in again.stdout
    assert "submitted 2 experiments in 2 sbatch call(s)" in again.stdout
    assert len(idle_slurm.squeue()) == 5
    idle_slurm.cancel_everything()


def test_a_folder_that_cannot_be_written(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    done = Study(tmp_path, SMALL, idle_slurm).launch("runs_root=/proc/runs")
    assert done.returncode == 2
    assert "error: runs_root=/proc/runs: " in done.stderr
    assert done.stderr.rstrip().endswith("choose a folder you can write")


def test_no_room_for_the_checkpoints(
    tmp_path: Path, idle_slurm: SlurmCluster, small_disk: Callable[[str], Path]
) -> None:
    study = Study(tmp_path, (*SMALL, f"runs_root={small_disk('1m')}/runs"), idle_slurm)
    done = study.launch("model.video.width=64")
    assert done.returncode == 2
    assert "may take" in done.stderr
    assert "MB" in done.stderr or "GB" in done.stderr


@pytest.mark.parametrize("left", [0, 200_000], ids=["from the first word", "while checkpointing"])
def test_a_quota_hit(tmp_path: Path, idle_slurm: SlurmCluster, small_disk: Callable[[str], Path], left: int) -> None:
    """The job says so, fails, takes its evaluation along; with more space the same command goes on."""
    disk = small_disk("24m")
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", f"runs_root={disk}/runs"), idle_slurm)
    study.launch("+cluster.additional_parameters.hold=true", "training.epochs=40")
    used = disk / "ballast"
    free = os.statvfs(disk)
    used.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    for job in {row["array_job_id"] for row in idle_slurm.squeue()}:
        idle_slurm.must("scontrol", "release", job)
    study.wait_until_idle()
    status = study.script("launch/status.py", f"runs_root={disk}/runs").stdout
    assert "No space left on device" in status, status
    assert "parent failed" in status
    used.unlink()
    study.launch("training.epochs=40")
    study.wait_until_idle()
    status = study.script("launch/status.py", f"runs_root={disk}/runs").stdout
    assert "2 of 2 done" in status


def test_a_home_that_cannot_be_written(
    tmp_path: Path, idle_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on compute nodes of many sites: no job needs anything below HOME."""
    monkeypatch.setenv("HOME", "/proc/home")
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false"), idle_slurm)
    study.launch()
    study.wait_until_idle()
    assert all(run.result is not None for run in study.runs().values())
    assert study.table()


def test_no_slurm_here(tmp_path: Path, idle_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path, SMALL, idle_slurm)
    study.launch("dry_run=true")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git"))  # git is there, Slurm is not
    monkeypatch.setenv("PATH", str(programs))
    here = Study(tmp_path, ("hydra/launcher=slurm", *SMALL))
    done = here.launch()
    assert done.returncode == 2
    assert "error: there is no Slurm on this machine (no sbatch): launch from a login node" in done.stderr
    dry = here.launch("dry_run=true")
    assert dry.returncode == 0
    assert "no Slurm on this machine: the scripts were not shown to it" in dry.stdout


def test_sbatch_understands_a_folder_with_spaces(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path / "my study", ("relaxation=[none]", "study.floor=false"), idle_slurm)
    study.launch()
    study.wait_until_idle()
    assert all(run.result is not None for run in study.runs().values())
    assert study.table()
