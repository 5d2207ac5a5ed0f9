"""One experiment of a local launch, and the command that runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from launch.study.graph import Experiment


@dataclass
class LocalJob:
    """One experiment of a launch.

    Attributes:
        experiment: the experiment.
        run: its run directory.
        state: WAITING until it starts or is known to be done.
        attached: whether a process that is no child of this one runs it.
        kept: whether it was done before this launch.
        reason: why it failed, in one line.
        process: its process, if this launch started one.
        gpus: ids of its GPUs.
        started: time of its start in seconds since 1970.
        ended: time of its end.
    """

    experiment: Experiment
    run: RunDirectory
    state: RunState = RunState.WAITING
    attached: bool = False
    kept: bool = False
    reason: str = ""
    process: subprocess.Popen[bytes] | None = None
    gpus: tuple[str, ...] = ()
    started: float | None = None
    ended: float | None = None

    @property
    def progress(self) -> Mapping[str, Any]:
        """Content of ``progress.json`` since the start; empty before."""
        progress = self.run.progress or {}
        return progress if self.started is None or progress.get("time", 0) >= self.started else {}

    @property
    def child(self) -> subprocess.Popen[bytes]:
        """The process of a job that this launch started.

        Raises:
            RuntimeError: if there is none.
        """
        if self.process is None:
            raise RuntimeError(f"{self.experiment.label}: {self.state}, but not started by this launch")
        return self.process


def job_command(run_directory: Path) -> list[str]:
    """Return the command that runs one experiment."""
    return [sys.executable, "-m", "launch.job", str(run_directory)]
