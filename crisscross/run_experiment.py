"""Run or resume one experiment of any kind, given its run directory."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory, slurm_job_id
from crisscross.run.state import RunState
from crisscross.utils.files import read_json, write_bytes, write_json
from crisscross.utils.git import CODE_ROOT, git_state, uncommitted_changes
from crisscross.utils.signals import SHUTDOWN, Preempted

logger = logging.getLogger(__name__)

SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_CLUSTER_NAME",
)


def run(directory: RunDirectory, *, patience_s: float = 1.0) -> bool:
    """Run or resume an experiment to its end.

    Args:
        directory: its run directory.
        patience_s: seconds to wait for the lock of the run directory.

    Returns:
        True if it is done (``result.json`` is written); False if it was interrupted and can be resumed.

    Raises:
        AlreadyRunningError: if another process has the lock of the run directory.
        ValueError, OSError, RuntimeError: if it failed; the message is one line with the remedy.
    """
    if directory.result is not None:
        return True
    if os.environ.get("RANK", "0") != "0":  # rank 0 has the lock and writes the run directory
        return _dispatch(directory)
    with directory.lock(patience_s=patience_s):
        return _run_alone(directory)


def _run_alone(directory: RunDirectory) -> bool:
    """Run an experiment under its lock and write its progress."""
    if directory.result is not None:  # the process that had the lock has finished it
        return True
    _record_launch(directory)
    directory.write_progress(state=RunState.RUNNING, phase="starting")
    try:
        done = _dispatch(directory)
    except BaseException as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        directory.write_progress(**{**(directory.progress or {}), "state": RunState.FAILED, "error": first_line})
        raise
    state = RunState.DONE if done else RunState.INTERRUPTED
    directory.write_progress(**{**(directory.progress or {}), "state": state, "signal": SHUTDOWN.signal_name})
    return done


def work_of(kind: str, *, protocol: str = "") -> Callable[[RunDirectory], bool]:
    """Import and return the function that runs experiments of a kind.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        protocol: ``downstream.name`` of an evaluation.
    """
    # Imported here: launch imports this module on the login node, and these import torch, which takes seconds.
    if kind == "pretrain":
        from crisscross.pretrain import pretrain

        return pretrain
    from crisscross.evaluate import evaluate
    from crisscross.finetune import finetune

    return finetune if protocol == "finetune" else evaluate


def _dispatch(directory: RunDirectory) -> bool:
    try:
        return work_of(directory.kind, protocol=directory.config.get("downstream", {}).get("name", ""))(directory)
    except Preempted as signal_name:
        logger.info("%s: stopped before the first step; clips that are staged on this node stay", signal_name)
        return False


def _record_launch(directory: RunDirectory) -> None:
    """Append this start to ``launches.json`` and write ``environment.json``.

    The number of restarts is the length of ``launches.json`` minus one.
    """
    path = directory.path / "launches.json"
    this = {"time": time.time(), "host": platform.node(), "slurm_job": slurm_job_id()}
    write_json(path, [*(read_json(path) or []), this])
    write_json(directory.path / "environment.json", environment())
    _record_changes(directory)


def _record_changes(directory: RunDirectory, root: Path = CODE_ROOT) -> None:
    """Write the uncommitted changes of the running code to ``code.diff``."""
    path = directory.path / "code.diff"
    diff = uncommitted_changes(root)
    # The file of an earlier start is emptied, not removed: MLflow may have it, and then gets the new content.
    if diff or path.is_file():
        write_bytes(path, diff)


def environment() -> dict[str, Any]:
    """Return Python version, packages, machine, commit and Slurm job of this process."""
    found = (item.metadata for item in importlib.metadata.distributions())  # every access parses a file
    packages = {metadata["Name"]: metadata["Version"] for metadata in found}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": dict(sorted(packages.items())),
        "git": git_state(),
        "slurm": {name: value for name, value in os.environ.items() if name in SLURM_VARIABLES},
    }
