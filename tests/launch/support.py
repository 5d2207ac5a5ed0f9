"""A small graph of experiments that fake jobs can run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from crisscross.run.run_dir import RunDirectory
from launch.local.live_display import Display
from launch.local.runner import LocalRunner
from launch.resources import Capacity
from launch.study.graph import Experiment, Graph
from tests.warm import warm_python

FAKE_JOB = Path(__file__).with_name("fake_job.py")


def config_of(root: Path, **changes: Any) -> dict[str, Any]:
    """Return as much of a config as the launch side looks at."""
    return {
        "data": {"name": "demo", "fingerprint": "f"},
        "method": {"name": "m"},
        "relaxation": "mild",
        "seed": 0,
        "runs_root": str(root),
        "execution": {"device": "cpu", "num_devices": 1, "num_threads": 1},
        **changes,
    }


def pretraining(root: Path, **changes: Any) -> Experiment:
    """Return a pretraining."""
    return Experiment("pretrain", config_of(root, **changes))


def evaluation(root: Path, parent: Experiment | None, **changes: Any) -> Experiment:
    """Return the evaluation of a pretraining, or of untrained backbones."""
    weights = {"run": str(parent.path) if parent else None, "video": None, "audio": None}
    config = config_of(root, weights=weights, downstream={"name": "svm"}, **changes)
    return Experiment("downstream", config, (parent,) if parent else ())


def runs_of(graph: Graph) -> dict[str, RunDirectory]:
    """Make the run directories of a graph."""
    runs: dict[str, RunDirectory] = {}
    for item in graph:
        parents = [runs[parent.identity] for parent in item.parents]
        runs[item.identity] = RunDirectory.create(item.kind, item.config, parents=parents)
    return runs


def fake_command(
    folder: Path, plan: Mapping[str, Mapping[str, Any]], *, cold: bool = False
) -> Callable[[Path], list[str]]:
    """Return the command of fake jobs that behave as planned; cold ones see their launcher die."""
    python = [sys.executable] if cold else warm_python()
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return lambda run_path: [*python, str(FAKE_JOB), str(path), str(run_path)]


def make_runner(
    folder: Path,
    graph: Graph,
    plan: Mapping[str, Mapping[str, Any]],
    *,
    slots: int = 2,
    heartbeat_s: float = 10.0,
    cold: bool = False,
) -> tuple[LocalRunner, io.StringIO]:
    """Return a runner of fake jobs, and what it will have printed."""
    printed = io.StringIO()
    display = Display(Console(file=printed, width=200), at_a_time=slots, heartbeat_s=heartbeat_s)
    runner = LocalRunner(
        graph,
        runs_of(graph),
        Capacity(slots, "experiments"),
        display,
        fake_command(folder, plan, cold=cold),
        poll_s=0.02,
    )
    return runner, printed
