"""The same cluster files serve ``--multirun``; its jobs resume in the same way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.utils.files import read_json
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import (
    ONE_CPU,
    REPOSITORY,
    TIMEOUT_S,
    TINY,
    Study,
    lost_steps,
    stop,
    stop_until_signaled,
)

pytestmark = pytest.mark.slow


def test_a_sweep_whose_job_is_sent_away_and_comes_back(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, (), idle_slurm)
    overrides = [item for item in [*ONE_CPU, *TINY] if "resources.cpu" not in item]
    sweep = subprocess.Popen(
        [
            *(sys.executable, str(REPOSITORY / "experiments/pretrain.py"), "--multirun", *overrides),
            *(f"data.root={Study.data_root}", "training.epochs=40", "seed=3,4"),
        ],
        cwd=tmp_path,
        env=idle_slurm.full_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    study.wait_until(lambda: len(list(tmp_path.glob("runs/pretrain/*/run.json"))) == 2, what="two run directories")
    run = study.run("pretrain/crisscross-mild-demo-s3")
    study.wait_until_at_step(run, 20)
    array = next(row["array_job_id"] for row in idle_slurm.squeue())
    stop(run)
    idle_slurm.must("scancel", "--signal=USR2", f"{array}_0")
    stop_until_signaled(study, run)
    printed, _ = sweep.communicate(timeout=TIMEOUT_S)
    assert sweep.returncode == 0, printed + study.explain()
    assert len(read_json(run.path / "launches.json")) == 2
    assert lost_steps(run) == [0]
    assert run.result["steps"] == 120
    assert study.run("pretrain/crisscross-mild-demo-s4").result["steps"] == 120
    assert run.config["tracking"]["delivery"] == "deferred"  # two jobs, one SQLite file
    assert "brought up to date for 2 run(s)" in study.script("launch/sync.py").stdout


def test_one_experiment_is_no_sweep(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    done = Study(tmp_path, (), idle_slurm).script("experiments/pretrain.py", "hydra/launcher=slurm")
    assert done.returncode == 2
    assert done.stderr == "error: hydra/launcher: one experiment runs here; add --multirun to give it to Slurm\n"
