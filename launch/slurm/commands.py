"""Slurm's commands: sbatch, squeue, sacct and scontrol, and the reasons of their refusals."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SLURM_TIMEOUT_S = 60.0  # ours: limit for one command; a busy controller answers within seconds

KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_ACCOUNT")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_UNAVAILABLE_NOW = ("busy", "down, drained or reserved")


class SlurmError(ValueError):
    """A command of Slurm failed. One line, with Slurm's own reason."""


class NoSlurmError(SlurmError):
    """This machine has no Slurm."""


class SlurmSilentError(SlurmError):
    """Slurm did not answer in time.

    It may have executed the command nevertheless.
    """


def submit(script: Path) -> str:
    """Submit a script with sbatch and return the job's number.

    Raises:
        SlurmError: if Slurm refuses it.
    """
    found = re.match(r"(\d+)", slurm("sbatch", "--parsable", str(script)))
    if found is None:
        raise SlurmError(f"sbatch {script}: no job number in its answer")
    return found[1]


def check(script: Path) -> str:
    """Test a script with ``sbatch --test-only``.

    Returns:
        Slurm's answer in one line: the expected start.

    Raises:
        SlurmError: if Slurm would refuse the script.
    """
    done = _run(["sbatch", "--test-only", str(script)])
    answer = _reason(done.stderr)
    if done.returncode and not any(words in answer for words in _UNAVAILABLE_NOW):
        raise SlurmError(answer)
    return answer


def slurm(*command: str) -> str:
    """Run a command of Slurm and return its output.

    Raises:
        SlurmError: if it fails; with Slurm's reason.
    """
    done = _run(command)
    if done.returncode:
        reason = _reason(done.stderr) or f"{command[0]} ended with exit code {done.returncode}"
        raise SlurmSilentError(reason) if "timed out" in reason.lower() else SlurmError(reason)
    return done.stdout


def site_facts() -> dict[str, str]:
    """Return the keys and values of ``scontrol show config``.

    Raises:
        SlurmError: if there is no Slurm, or it does not answer.
    """
    pairs = (line.split("=", 1) for line in slurm("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S, env=clean_environment(), check=False
        )
    except FileNotFoundError:
        raise NoSlurmError(
            f"there is no Slurm on this machine (no {command[0]}): launch from a login node of the cluster, or leave"
            " hydra/launcher out to run here"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmSilentError(f"{command[0]} did not answer within {SLURM_TIMEOUT_S:.0f} s: try again") from None


def clean_environment() -> dict[str, str]:
    """Return the environment without variables of a surrounding job.

    New jobs inherit the environment of sbatch.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or (not name.startswith(("SLURM_", "SUBMITIT_")) and name not in _RANK_VARIABLES)
    }


def _reason(stderr: str) -> str:
    """Return Slurm's stderr as one line, without the program's name."""
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


_FIELDS = ("%F", "%K", "%T", "%r", "%N", "%S", "%o")

_ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
        "PREEMPTED",
    ]
)

NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class QueuedTask:
    """A task in the queue, pending or running.

    Attributes:
        job_id: number of the job; in an array, the number shared by its tasks.
        index: index in the array; None for a single job.
        state: Slurm's state, such as ``PENDING``.
        reason: Slurm's reason for a pending task, such as ``Priority``.
        nodes: its nodes; empty while it is pending.
        starts: expected or actual start (``YYYY-MM-DDTHH:MM:SS`` or ``N/A``).
        script: the script of its sbatch call.
    """

    job_id: str
    index: int | None
    state: str
    reason: str
    nodes: str
    starts: str
    script: str

    @property
    def is_running(self) -> bool:
        """Whether it has nodes."""
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class Queue:
    """The user's pending and running tasks."""

    tasks: tuple[QueuedTask, ...]

    @cached_property
    def _by_id(self) -> Mapping[tuple[str, int | None], QueuedTask]:
        return {(task.job_id, task.index): task for task in self.tasks}

    @cached_property
    def _by_script(self) -> Mapping[str, str]:
        return {task.script: task.job_id for task in self.tasks}

    def find(self, job_id: str, index: int | None) -> QueuedTask | None:
        """Return a task; None if it is not in the queue."""
        return self._by_id.get((job_id, index))

    def job_of(self, script: str) -> str | None:
        """Return the number of a script's queued job, or None."""
        return self._by_script.get(script)


def read_queue(users: Iterable[str] = ()) -> Queue:
    """Read the queue with one squeue call.

    Args:
        users: names of the users; none = only this user.

    Raises:
        SlurmError: if there is no Slurm, or it does not answer.
    """
    whose = ["--user", ",".join(sorted(users))] if users else ["--me"]
    text = slurm("squeue", "--noheader", "--array", *whose, "--format", "|".join(_FIELDS))
    tasks = [_task(line) for line in text.splitlines() if line.strip()]
    return Queue(tuple(task for task in tasks if task.state not in _ENDED and task.reason != NEVER))


def _task(line: str) -> QueuedTask:
    job_id, index, state, reason, nodes, starts, script = line.strip().split("|", len(_FIELDS) - 1)
    return QueuedTask(job_id, int(index) if index.isdigit() else None, state, reason, nodes, starts, script)


def read_ended(job_ids: Iterable[str]) -> dict[tuple[str, int | None], str]:
    """Read the final states of jobs with one sacct call.

    Args:
        job_ids: numbers of jobs and arrays.

    Returns:
        Slurm's state by job and index, such as ``CANCELLED by 1000``, ``TIMEOUT``, ``OUT_OF_MEMORY``; empty without
        accounting.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    try:
        text = slurm(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", "-j", ",".join(wanted)
        )
    except SlurmError:
        return {}
    states: dict[tuple[str, int | None], str] = {}
    for line in text.splitlines():
        name, _, state = line.partition("|")
        job_id, _, index = name.partition("_")
        if (index.isdigit() or not index) and state.split(" ")[0] in _ENDED:  # sacct may lag behind squeue
            states[job_id, int(index) if index else None] = state
    return states
