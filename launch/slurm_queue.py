"""What Slurm knows of our jobs: one squeue call for all that is queued or runs, one sacct call for what has ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from launch.sbatch import SlurmError, slurm

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
    """A task that waits or runs.

    Attributes:
        job_id: number of the job; of an array, the number that its tasks share.
        index: index in the array; None for a job by itself.
        state: Slurm's word, such as ``PENDING``.
        reason: why it waits, in Slurm's word, such as ``Priority``.
        nodes: where it runs; empty while it waits.
        starts: when Slurm expects it to start (``YYYY-MM-DDTHH:MM:SS`` or ``N/A``), or when it started.
        script: the file that was given to sbatch.
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
    """Everything of ours that is queued or runs."""

    tasks: tuple[QueuedTask, ...]

    @cached_property
    def _by_id(self) -> Mapping[tuple[str, int | None], QueuedTask]:
        return {(task.job_id, task.index): task for task in self.tasks}

    @cached_property
    def _by_script(self) -> Mapping[str, str]:
        return {task.script: task.job_id for task in self.tasks}

    def find(self, job_id: str, index: int | None) -> QueuedTask | None:
        """Return a task, or None when it is not in the queue (any more)."""
        return self._by_id.get((job_id, index))

    def job_of(self, script: str) -> str | None:
        """Return the number of the job that a script became, if it is in the queue."""
        return self._by_script.get(script)


def read_queue(users: Iterable[str] = ()) -> Queue:
    """Ask squeue once.

    Args:
        users: whose jobs beside our own.

    Raises:
        SlurmError: when there is no Slurm, or it does not answer.
    """
    whose = ["--user", ",".join(sorted(users))] if users else ["--me"]
    text = slurm("squeue", "--noheader", "--array", *whose, "--format", "|".join(_FIELDS))
    tasks = [_task(line) for line in text.splitlines() if line.strip()]
    return Queue(tuple(task for task in tasks if task.state not in _ENDED and task.reason != NEVER))


def _task(line: str) -> QueuedTask:
    job_id, index, state, reason, nodes, starts, script = line.strip().split("|", len(_FIELDS) - 1)
    return QueuedTask(job_id, int(index) if index.isdigit() else None, state, reason, nodes, starts, script)


def read_ended(job_ids: Iterable[str]) -> dict[tuple[str, int | None], str]:
    """Ask sacct once how jobs ended; an empty answer where there is no accounting.

    Args:
        job_ids: numbers of jobs and arrays.

    Returns:
        Slurm's word by job and index, such as ``CANCELLED by 1000``, ``TIMEOUT``, ``OUT_OF_MEMORY``.
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
        if (index.isdigit() or not index) and state.split(" ")[0] in _ENDED:  # accounting may lag behind the queue
            states[job_id, int(index) if index else None] = state
    return states
