"""Resources of this machine: how many experiments run at a time, on which GPUs. Without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crisscross.config.experiment import trains
from launch.study.graph import Experiment

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Capacity:
    """Resources of this machine.

    Attributes:
        total: number of units.
        unit: ``"experiments"`` (with ``max_parallel``), ``"GPUs"`` or ``"cores"``.
        gpus: ids for CUDA_VISIBLE_DEVICES; empty without GPUs.
    """

    total: int
    unit: str
    gpus: tuple[str, ...] = ()

    def cost(self, config: Mapping[str, Any]) -> int:
        """Return the units of one experiment.

        They are at most all units, so that each experiment can run alone.
        """
        execution = config["execution"]
        devices = num_processes(config)
        cost = {"experiments": 1, "GPUs": devices, "cores": devices * execution["num_threads"]}[self.unit]
        return min(self.total, cost)

    def at_a_time(self, experiments: Iterable[Experiment]) -> int:
        """Return how many of these experiments run at a time."""
        return self.total // max((self.cost(experiment.config) for experiment in experiments), default=1)


def capacity_of(experiments: Iterable[Experiment], *, max_parallel: int | None = None) -> Capacity:
    """Return the resources of this machine.

    Args:
        experiments: the experiments to run.
        max_parallel: experiments at a time; None = as many as cores or GPUs allow.

    Raises:
        ValueError: if the experiments need GPUs that this machine lacks.
    """
    executions = [experiment.config["execution"] for experiment in experiments]
    gpus = visible_gpus() if any(execution["device"] != "cpu" for execution in executions) else ()
    for execution in executions:
        if execution["device"] == "cuda" and not gpus:
            raise ValueError(
                "execution.device=cuda: this machine shows no GPU (nvidia-smi): use execution.device=auto or cpu"
            )
        if gpus and execution["num_devices"] > len(gpus):
            raise ValueError(
                f"execution.num_devices={execution['num_devices']}: this machine shows {len(gpus)} GPU(s): lower it"
            )
    if max_parallel is not None:
        return Capacity(max_parallel, "experiments", gpus)
    return Capacity(len(gpus), "GPUs", gpus) if gpus else Capacity(num_cores(), "cores")


def num_processes(config: Mapping[str, Any]) -> int:
    """Return the number of processes of an experiment.

    A training has one per device, any other experiment one.
    """
    return config["execution"]["num_devices"] if trains(config) else 1


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Return the ids of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(item for item in chosen.split(",") if item not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(index) for index, _ in enumerate(line for line in listing.splitlines() if line.startswith("GPU ")))


def thread_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that set thread counts. Libraries read them on import."""
    return {name: str(config["execution"]["num_threads"]) for name in _THREAD_VARIABLES}


def job_environment(config: Mapping[str, Any], *, gpus: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment of a job, with its threads and GPUs."""
    chosen = ",".join(gpus)
    return {
        **os.environ,
        **thread_environment(config),
        "PYTHONUNBUFFERED": "1",
        "CRISSCROSS_LAUNCHER": str(os.getpid()),  # see launch/job/run.py: a job does not outlive its launcher
        **({"CUDA_VISIBLE_DEVICES": chosen} if chosen else {}),
    }
