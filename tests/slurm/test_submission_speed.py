"""500 experiments are three sbatch calls: jobs are held, so that only their submission takes time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import HELD, Study

pytestmark = pytest.mark.slow

NUM = 500


def test_500_experiments_are_three_sbatch_calls(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    seeds = ",".join(map(str, range(NUM // 2)))
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", f"seeds=[{seeds}]", HELD), idle_slurm)
    done = study.launch()
    assert done.returncode == 0, done.stderr
    assert f"submitted {NUM} experiments in 3 sbatch call(s)" in done.stdout
    assert len(idle_slurm.squeue()) == NUM + 1
    assert len({row["array_job_id"] for row in idle_slurm.squeue()}) == 3
    idle_slurm.cancel_everything()
