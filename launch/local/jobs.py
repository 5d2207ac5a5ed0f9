"""One experiment of a launch on this machine, and the command that runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from launch.study.graph import Experiment


@dataclass
class LocalJob:
    """One experiment of a launch.

    Attributes:
        state: ``"waiting"``, ``"running"`` (as our child), ``"attached"`` (another process runs it) or one of
            ``ENDED``.
        kept: whether it was done before this launch.
        reason: why it failed, in one line.
    """

    experiment: Experiment
    run: RunDirectory
    state: str = "waiting"
    kept: bool = False
    reason: str = ""
    process: subprocess.Popen[bytes] | None = None
    gpus: tuple[str, ...] = ()
    started: float | None = None
    ended: float | None = None

    @property
    def progress(self) -> Mapping[str, Any]:
        """What the job said of itself since it was started; empty before its first word."""
        progress = self.run.progress or {}
        return progress if self.started is None or progress.get("time", 0) >= self.started else {}

    @property
    def child(self) -> subprocess.Popen[bytes]:
        """The process of a job that runs as our child.

        Raises:
            RuntimeError: it does not.
        """
        if self.process is None:
            raise RuntimeError(f"{self.experiment.label}: {self.state}, but no child of ours")
        return self.process


def job_command(run_directory: Path) -> list[str]:
    """Return the command that runs one experiment."""
    return [sys.executable, "-m", "launch.job", str(run_directory)]
