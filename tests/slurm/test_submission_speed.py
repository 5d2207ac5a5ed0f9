"""500 experiments that do nothing: sbatch calls and seconds until Slurm has them, beside what there is elsewhere.

Jobs are held, so that only the submission is measured. The figures are printed (``pytest -rP``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import submitit

from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import REPOSITORY, TINY, Study

pytestmark = pytest.mark.slow

NUM = 500
NUM_MULTIRUN = 100  # Hydra composes them one by one, which takes a minute for 500
NUM_SINGLE = 25
HELD = "+cluster.additional_parameters.hold=true"


@dataclass
class Counter:
    """An sbatch in front of the real one that counts its calls."""

    folder: Path

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it first on the path."""
        self.folder.mkdir()
        real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
        script = self.folder / "sbatch"
        script.write_text(
            f'#!/bin/sh\ncase "$*" in *--test-only*) ;; *) echo >> {self.folder}/calls;; esac\nexec {real} "$@"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def take(self) -> int:
        """Return the calls since it was last asked."""
        calls = self.folder / "calls"
        count = len(calls.read_text().splitlines()) if calls.exists() else 0
        calls.unlink(missing_ok=True)
        return count


def do_nothing(number: int) -> None:
    """Stand in for an experiment."""


def test_500_experiments(
    tmp_path: Path, idle_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = Counter(tmp_path / "bin")
    counter.install(monkeypatch)
    found = {
        "a study here (250 pretrainings, 250 evaluations, the table)": _ours(tmp_path, idle_slurm),
        f"hydra-submitit-launcher (only {NUM_MULTIRUN} pretrainings; it goes on waiting)": _multirun(
            tmp_path, idle_slurm
        ),
        "submitit map_array (500 calls of a function)": _map_array(tmp_path, idle_slurm),
        f"submitit submit, one by one (only {NUM_SINGLE})": _one_by_one(tmp_path, idle_slurm),
    }
    with capsys.disabled():
        print("\n500 no-op experiments, submission alone:")
        for name, (seconds, calls) in found.items():
            print(f"  {name:<64} {calls:>4} sbatch calls {seconds:6.1f} s")
    assert found["a study here (250 pretrainings, 250 evaluations, the table)"][1] == 3


def _count(folder: Path) -> int:
    return Counter(folder / "bin").take()


def _ours(folder: Path, cluster: SlurmCluster) -> tuple[float, int]:
    seeds = ",".join(map(str, range(NUM // 2)))
    study = Study(
        folder / "ours",
        ("relaxation=[none]", "study.floor=false", f"seeds=[{seeds}]", "training.epochs=0", HELD),
        cluster,
    )
    study.launch("dry_run=true")  # makes the clips
    began = time.monotonic()
    done = study.launch()
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert f"submitted {NUM} experiments in 3 sbatch call(s)" in done.stdout
    assert len(cluster.squeue()) == NUM + 1
    cluster.cancel_everything()
    return seconds, _count(folder)


def _multirun(folder: Path, cluster: SlurmCluster) -> tuple[float, int]:
    home = folder / "multirun"
    home.mkdir()
    overrides = [item for item in TINY if not item.startswith("views.evaluation")]
    began = time.monotonic()
    launcher = subprocess.Popen(
        [
            *(sys.executable, str(REPOSITORY / "experiments/pretrain.py"), "--multirun", "hydra/launcher=slurm"),
            *("cluster.resources.pretrain.gpus_per_node=null", "cluster.resources.pretrain.cpus_per_task=1", HELD),
            *(*overrides, "training.epochs=0", f"data.root={Study.data_root}", f"seed=range({NUM_MULTIRUN})"),
        ],
        cwd=home,
        env=cluster.full_environment(),
    )
    seconds = _until_queued(cluster, NUM_MULTIRUN, began)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    cluster.cancel_everything()
    return seconds, _count(folder)


def _until_queued(cluster: SlurmCluster, count: int, began: float) -> float:
    while len(cluster.squeue()) < count:
        assert time.monotonic() - began < 200, cluster.explain()[-2000:]
        time.sleep(0.2)
    return time.monotonic() - began


def _executor(folder: Path) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(time=5, additional_parameters={"hold": True})
    return executor


def _map_array(folder: Path, cluster: SlurmCluster) -> tuple[float, int]:
    began = time.monotonic()
    _executor(folder / "array").map_array(do_nothing, range(NUM))
    seconds = time.monotonic() - began
    cluster.cancel_everything()
    return seconds, _count(folder)


def _one_by_one(folder: Path, cluster: SlurmCluster) -> tuple[float, int]:
    began = time.monotonic()
    executor = _executor(folder / "single")
    for number in range(NUM_SINGLE):
        executor.submit(do_nothing, number)
    seconds = time.monotonic() - began
    cluster.cancel_everything()
    return seconds, _count(folder)
