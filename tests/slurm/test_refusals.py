"""What Slurm or the machine refuses is one clear line; nothing is half done, and the same command works afterwards."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import HELD, Study, stop

pytestmark = pytest.mark.slow

SMALL = ("relaxation=[none,mild]", "study.floor=false")

CONTAINER = """#!/bin/bash
# Stands in for `apptainer exec --nv IMAGE COMMAND`: records its arguments and runs the command.
echo "${@:3}" >> "$0.calls"
[ "$1 $2 $3" = "exec --nv my image.sif" ] && exec "${@:4}"
"""


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
    if override != "cluster.partition=mars":
        return
    dry = study.launch(override, "dry_run=true")
    assert dry.returncode == 1
    assert "Slurm about pretrain jobs: refused: " in dry.stdout
    again = study.launch(HELD)
    assert "submitted 4 experiments in 3 sbatch call(s)" in again.stdout
    idle_slurm.cancel_everything()


def test_refused_halfway(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, SMALL, idle_slurm)
    idle_slurm.limit_submissions(3)
    done = study.launch(HELD)
    assert done.returncode == 1
    assert "submitted 2 experiments in 1 sbatch call(s)" in done.stdout
    assert "Slurm refused: " in done.stdout
    names = "crisscross-none-demo-s0-svm-demo, crisscross-mild-demo-s0-svm-demo"
    assert f"not submitted: 2 experiments ({names}), nor the table" in done.stdout
    idle_slurm.limit_submissions(None)
    again = study.launch(HELD)
    assert "2 experiments are queued or running already" in again.stdout
    assert "submitted 2 experiments in 2 sbatch call(s)" in again.stdout
    assert len(idle_slurm.squeue()) == 5
    idle_slurm.cancel_everything()


def test_a_folder_that_cannot_be_written(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    done = Study(tmp_path, SMALL, idle_slurm).launch("runs_root=/proc/runs")
    assert done.returncode == 2
    assert "error: runs_root=/proc/runs: " in done.stderr
    assert done.stderr.rstrip().endswith("choose a folder you can write")


def test_a_disk_too_small_for_the_checkpoints_fails_before_the_first_step(
    tmp_path: Path, idle_slurm: SlurmCluster, small_disk: Callable[[str], Path]
) -> None:
    runs_root = small_disk("24m") / "runs"
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", f"runs_root={runs_root}"), idle_slurm)
    assert study.launch("model.video.width=64").returncode == 0
    study.wait_until_idle()
    status = study.script("launch/status.py", f"runs_root={runs_root}").stdout
    assert "may take" in status
    assert "free some space" in status


def _fill(disk: Path, file: Path, left: int) -> None:
    """Fill a disk up to ``left`` bytes."""
    free = os.statvfs(disk)
    file.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))


@pytest.mark.parametrize("left", [0, 200_000], ids=["from the first word", "while checkpointing"])
def test_a_quota_hit(tmp_path: Path, idle_slurm: SlurmCluster, small_disk: Callable[[str], Path], left: int) -> None:
    """The job reports it and fails, its evaluation too; with more space the same command resumes."""
    disk = small_disk("24m")
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", f"runs_root={disk}/runs"), idle_slurm)
    study.launch(HELD, "training.epochs=45")
    used = disk / "ballast"
    if left:  # a training that finds too little at its start does not start: this one is on its way
        study.release()
        (path,) = (disk / "runs" / "pretrain").iterdir()
        run = RunDirectory.open(path)
        study.wait_until_at_step(run, 3)
        process = stop(run)
        _fill(disk, used, left)
        process.resume()
    else:
        _fill(disk, used, left)
        study.release()
    study.wait_until_idle()
    status = study.script("launch/status.py", f"runs_root={disk}/runs").stdout
    assert "No space left on device" in status, status
    assert "parent failed" in status
    used.unlink()
    study.launch("training.epochs=45")
    study.wait_until_idle()
    status = study.script("launch/status.py", f"runs_root={disk}/runs").stdout
    assert "2 of 2 done" in status


def test_a_container_a_home_that_cannot_be_written_and_spaces(
    tmp_path: Path, idle_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``cluster.python`` is several words, as of a container; no job needs anything below HOME, as on many sites."""
    container = tmp_path / "my container"
    container.write_text(CONTAINER)
    container.chmod(0o755)
    command = f"cluster.python=['{container}',exec,--nv,'$IMAGE',{sys.executable}]"
    monkeypatch.setenv("HOME", "/proc/home")
    study = Study(tmp_path / "my study", ("relaxation=[none]", "study.floor=false", command), idle_slurm, cold=True)
    done = study.launch("+cluster.environment.IMAGE='my image.sif'")
    assert done.returncode == 0, done.stderr
    study.wait_until_idle()
    assert all(run.result is not None for run in study.runs().values()), study.explain()
    assert study.table()
    calls = (tmp_path / "my container.calls").read_text()
    for module in ("launch.environment", "launch.job", "launch.slurm.report_job"):
        assert f"my image.sif {sys.executable} -m {module}" in calls


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
