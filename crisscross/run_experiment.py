"""Run one experiment, whatever it is, from its run directory alone. Starting it again is the same call."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_bytes, write_json
from crisscross.utils.git import CODE_ROOT, git_state, uncommitted_changes
from crisscross.utils.signals import INTERRUPTION, Preempted

logger = logging.getLogger(__name__)

SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_CLUSTER_NAME",
)


def run(directory: RunDirectory, *, patience_s: float = 1.0) -> bool:
    """Run an experiment from wherever it stands to its end.

    Args:
        directory: its run directory.
        patience_s: how long to wait for another process to let go of it.

    Returns:
        True when it is done (``result.json`` is written), False when it was interrupted and can go on.

    Raises:
        AlreadyRunningError: when another process works on it.
        ValueError, OSError, RuntimeError: when it failed; the message is one line that says what to do.
    """
    if directory.result is not None:
        return True
    if os.environ.get("RANK", "0") != "0":  # one of several processes of one experiment: rank 0 keeps the books
        return _dispatch(directory)
    with directory.lock(patience_s=patience_s):
        return _run_alone(directory)


def _run_alone(directory: RunDirectory) -> bool:
    """Run what no other process works on, and say in its folder how it goes."""
    if directory.result is not None:  # whom we waited for has done it
        return True
    _note_launch(directory)
    directory.write_progress(state="running", phase="starting")
    try:
        done = _dispatch(directory)
    except BaseException as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        directory.write_progress(**{**(directory.progress or {}), "state": "failed", "error": first_line})
        raise
    state = "done" if done else "interrupted"
    directory.write_progress(**{**(directory.progress or {}), "state": state, "signal": INTERRUPTION.signal_name})
    return done


def work_of(kind: str, *, protocol: str = "") -> Callable[[RunDirectory], bool]:
    """Return the function that runs experiments of a kind, importing all that it needs.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        protocol: ``downstream.name`` of an evaluation.
    """
    # Imported here: the login node imports this package to print a graph and must not wait for torch.
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
        logger.info("%s: stopped before the first step; clips that have been brought to this node stay", signal_name)
        return False


def _note_launch(directory: RunDirectory) -> None:
    """Keep a list of the times this experiment was started, and say where and with what it runs now.

    The number of restarts is the list's length less one.
    """
    path = directory.path / "launches.json"
    this = {"time": time.time(), "host": platform.node(), "slurm_job": _slurm_job()}
    write_json(path, [*(read_json(path) or []), this])
    write_json(directory.path / "environment.json", environment())
    _note_changes(directory)


def _note_changes(directory: RunDirectory, root: Path = CODE_ROOT) -> None:
    """Keep what the code that runs now adds to its commit as ``code.diff``."""
    path = directory.path / "code.diff"
    diff = uncommitted_changes(root)
    # Emptied rather than removed where an earlier start left one: MLflow may have it, and is sent this one instead.
    if diff or path.is_file():
        write_bytes(path, diff)


def _slurm_job() -> str | None:
    """Return the Slurm job that we are, as Slurm calls it: a number, or ``<array>_<index>``; None outside of Slurm."""
    array, index = (os.environ.get(name) for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def environment() -> dict[str, Any]:
    """Return what this process runs on: Python, packages, machine, commit, Slurm job."""
    found = (item.metadata for item in importlib.metadata.distributions())  # each look at it parses a file
    packages = {metadata["Name"]: metadata["Version"] for metadata in found}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": dict(sorted(packages.items())),
        "git": git_state(),
        "slurm": {name: value for name, value in os.environ.items() if name in SLURM_VARIABLES},
    }
