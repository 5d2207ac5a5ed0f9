"""A small relaxation study for tests, launched as a user would: on the cluster, or here for comparison."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.query import search_runs
from crisscross.utils.files import read_json
from launch.resources import thread_environment
from launch.study.plan import create_runs, make_plan
from tests.slurm.cluster import SlurmCluster
from tests.support import TINY_OVERRIDES, TINY_PRETRAINING, assert_same_state, final_state, full_history, history
from tests.warm import warm_python

REPOSITORY = Path(__file__).parents[2]
TINY = [item for item in [*TINY_OVERRIDES, *TINY_PRETRAINING] if not item.startswith("tracking")]
ONE_CPU = [
    "hydra/launcher=slurm",
    "cluster.resources.pretrain.gpus_per_node=null",
    "cluster.resources.pretrain.cpus_per_task=1",
    "cluster.resources.cpu.cpus_per_task=1",
    "cluster.signal_seconds=30",
]


HELD = "+cluster.additional_parameters.hold=true"
TIMEOUT_S = 900.0
"""Tests wait for what they wait for; this is when a busy machine is given up on."""


@dataclass
class Study:
    """A folder in which a study is launched.

    Attributes:
        folder: runs, clips, MLflow file and tables are in it.
        overrides: what is typed after the script's name.
        cluster: where it runs; None = here.
        cold: whether its scripts and jobs have interpreters of their own, rather than forks of a warm one.
        data_root: where all studies of a test run have their clips; set by conftest.py.
    """

    folder: Path
    overrides: tuple[str, ...]
    cluster: SlurmCluster | None = None
    cold: bool = False
    data_root: ClassVar[Path]

    @property
    def python(self) -> list[str]:
        """What runs its scripts and its jobs."""
        return [sys.executable] if self.cold else warm_python()

    def launch(self, *more: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Launch it; on the cluster this returns at once."""
        return self.script("launch/sweep_relaxation.py", *self.command(*more), timeout_s=timeout_s)

    def compute_here(self) -> Study:
        """Run its experiments one after another in this folder, as a reference; its table is made, where it has one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(self.folder):
            plan = make_plan("relaxation", self.command())
            for run in create_runs(plan, launched=time.time()).values():  # parents first
                environment = {**os.environ, **thread_environment(run.config)}
                subprocess.run([*warm_python(), "-m", "launch.job", str(run.path)], env=environment, check=True)
        self.launch()
        return self

    def command(self, *more: str) -> list[str]:
        """Return the overrides of a launch."""
        python = ",".join(f"'{word}'" for word in self.python)
        where = [*ONE_CPU, f"cluster.python=[{python}]"] if self.cluster is not None else []
        tiny = [*TINY, f"data.root={self.data_root}"]
        if any(override.startswith("data=") for override in self.overrides):  # other clips than the demo's
            tiny = [override for override in tiny if not override.startswith("data.")]
        return [*where, *tiny, *self.overrides, *more]

    def script(self, name: str, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run one of the project's scripts in the study's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [*self.python, str(REPOSITORY / name), *arguments],
            cwd=self.folder,
            env=None if self.cluster is None else self.cluster.full_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, pattern: str) -> RunDirectory:
        """Return the run directory whose name begins like this, such as ``pretrain/crisscross-none``."""
        (path,) = (self.folder / "runs").glob(f"{pattern}*")
        return RunDirectory.open(path)

    def runs(self) -> dict[str, RunDirectory]:
        """Return all run directories by label."""
        found = [RunDirectory.open(path.parent) for path in (self.folder / "runs").glob("*/*/run.json")]
        return {run.label: run for run in found}

    def wait_until(
        self, reached: Callable[[], bool], *, what: str, timeout_s: float = TIMEOUT_S, poll_s: float = 0.3
    ) -> None:
        """Wait for a condition; fail with the cluster's and the runs' state if it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s:.0f} s\n{self.explain()}")
            time.sleep(poll_s)

    def wait_until_at_step(self, run: RunDirectory, step: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a run has done so many steps."""
        self.wait_until(
            lambda: (run.progress or {}).get("state") == "running" and (run.progress.get("step") or 0) >= step,
            what=f"{run.label} at step {step}",
            timeout_s=timeout_s,
        )

    def release(self) -> None:
        """Let jobs go that were submitted with ``HELD``."""
        for job in {row["array_job_id"] for row in self.cluster.squeue()}:
            self.cluster.must("scontrol", "release", job)

    def wait_until_idle(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the queue is empty."""
        self.wait_until(lambda: not self.cluster.squeue(), what="an empty queue", timeout_s=timeout_s, poll_s=0.7)

    def explain(self) -> str:
        """Return the queue and the ends of the logs."""
        texts = [self.cluster.explain()] if self.cluster is not None else []
        for path in sorted(self.folder.glob("runs/*/*/*log*")):
            texts.append(f"--- {path}\n{path.read_text()[-1500:]}")
        return "\n".join(texts)

    def table(self) -> str:
        """Return the table that was written."""
        (path,) = (self.folder / "tables").glob("table3-*.md")
        return path.read_text()

    def jobs_of(self, run: RunDirectory) -> str:
        """Return the Slurm job of a run, such as ``8_0``."""
        claim = json.loads((run.path / "slurm.json").read_text())
        job = json.loads((self.folder / "runs" / "slurm" / claim["batch"] / "job.json").read_text())
        return f"{job['job_id']}_{claim['index']}"


def assert_same_results(one: Study, other: Study) -> None:
    """Compare the results, final states and histories of two studies; check that no step occurs twice."""
    left, right = one.runs(), other.runs()
    assert left.keys() == right.keys()
    for label, run in left.items():
        assert run.identity == right[label].identity
        assert run.result is not None, f"{label} has no result"
        assert history(run) == history(right[label]), label
        steps = [step for step, _ in full_history(run)]
        assert steps == sorted(set(steps))
        if run.kind == "pretrain":
            assert_same_state(final_state(run), final_state(right[label]))
        else:
            assert run.result["metrics"] == right[label].result["metrics"]


def assert_synced_once(study: Study, *, uri: str | None = None) -> None:
    """Look into MLflow: one run an experiment, and every (metric, step) of each exactly once."""
    from mlflow import MlflowClient

    uri = uri or f"sqlite:///{study.folder / 'mlflow.db'}"
    everything = "tags.`crisscross.identity` LIKE '%'"  # but the run that keeps the tables
    told_of = search_runs(everything, uri=uri, experiment="crisscross")
    found = {run["tags"]["crisscross.identity"]: run for run in told_of}
    assert len(found) == len(told_of)
    runs = study.runs()
    assert {run.identity for run in runs.values()} == found.keys()
    client = MlflowClient(tracking_uri=uri)
    for run in runs.values():
        logged = found[run.identity]
        assert logged["status"] == "FINISHED"
        expected = full_history(run) or [(0, run.result["metrics"])]  # an evaluation's numbers have no history
        for name in ("loss/total", "eval/top1_av"):
            points = sorted((point.step, point.value) for point in client.get_metric_history(logged["run_id"], name))
            assert points == [(step, values[name]) for step, values in expected if name in values]


@dataclass(frozen=True)
class Pace:
    """How far a run was, and how fast, just before something happened to it.

    Attributes:
        step: the step that it last spoke of; it speaks twice a second.
        steps_per_second: over the last second or more.
    """

    step: int
    steps_per_second: float

    @classmethod
    def of(cls, run: RunDirectory) -> Pace:
        """Measure it, which takes more than a second."""
        first = last = run.progress
        while last["time"] - first["time"] < 1:
            time.sleep(0.05)
            last = run.progress
        return cls(last["step"], (last["step"] - first["step"]) / (last["time"] - first["time"]))


def steps_done_again(run: RunDirectory, before: Pace) -> int:
    """Return how many of the steps of which a run had spoken it did again, when it went on for the first time."""
    resumed = re.search(r"going on from step (\d+)", run.log_path.read_text())
    return before.step - (int(resumed[1]) if resumed else 0)


def lost_steps(run: RunDirectory) -> list[int]:
    """Return for every resumption the number of repeated steps, from the run's log."""
    stopped, lost = 0, []
    for line in run.log_path.read_text().splitlines():
        if found := re.search(r"stopped after step (\d+)", line):
            stopped = int(found[1])
        if found := re.search(r"going on from step (\d+)", line):
            lost.append(stopped - int(found[1]) if stopped else -1)
    return lost


def stop(run: RunDirectory) -> psutil.Process:
    """Stop the first process of a run where it is: however fast the machine, what strikes it next finds it there."""
    process = psutil.Process(read_json(run.path / "holder.json")["pid"])
    process.suspend()
    while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):  # the kernel takes its time
        time.sleep(0.01)
    return process


def stop_until_signaled(study: Study, run: RunDirectory) -> None:
    """Continue a stopped run after Slurm has sent it a signal; some signals of Slurm continue it themselves."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it has left between two questions
        process = stop(run)
        study.wait_until(
            lambda: process.status() != psutil.STATUS_STOPPED or _is_signaled(process), what=f"a signal for {run.label}"
        )
        process.resume()


def _is_signaled(process: psutil.Process) -> bool:
    """Whether SIGTERM or SIGUSR2 waits for a stopped process."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        waiting = int(re.search(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)[1], 16)
        return any(waiting >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR2))
    return True
