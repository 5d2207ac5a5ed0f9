"""The Slurm job of each experiment, written before the job exists, so that no crash leaves an unknown job.

runs/slurm/<batch>/batch.json     the experiments of one sbatch call, by array index; written first
runs/slurm/<batch>/script.sh      the script for sbatch; squeue prints it, which identifies a job without job.json
runs/slurm/<batch>/job.json       the job's number; written last
runs/slurm/.lock                  held while a launch reconciles and submits
<run directory>/slurm.json        the assignment: batch and index of the job that runs this experiment
"""

from __future__ import annotations

import contextlib
import getpass
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import file_lock, read_json, write_json
from launch.slurm.commands import Queue, QueuedTask, read_queue
from launch.study.record import assignment_path

LOCK_TIMEOUT_S = 300.0  # ours: another launch submits thousands of experiments in seconds


@dataclass(frozen=True)
class SbatchCall:
    """One sbatch call. Its folder is the only argument of its jobs.

    Attributes:
        folder: ``runs/slurm/<batch>``.
    """

    folder: Path

    @classmethod
    def create(cls, runs_root: Path, *, kind: str, runs: Mapping[int, Path], dependency: str | None) -> SbatchCall:
        """Make the folder of an sbatch call.

        Args:
            runs_root: folder of the run directories.
            kind: kind of resources, see ``launch.study.cluster.resource_kind``.
            runs: run directories by array index.
            dependency: value of ``sbatch --dependency``.
        """
        root = runs_root.resolve()
        call = cls(slurm_folder(root) / uuid.uuid4().hex[:12])
        call.folder.mkdir(mode=0o700)
        write_json(
            call.folder / "batch.json",
            {
                "kind": kind,
                "runs": {str(index): os.path.relpath(path, root) for index, path in runs.items()},
                "dependency": dependency,
                "created": time.time(),
                "user": user_name(),
            },
        )
        return call

    @property
    def name(self) -> str:
        """12 hexadecimal digits."""
        return self.folder.name

    @property
    def script(self) -> Path:
        """The script for sbatch."""
        return self.folder / "script.sh"

    @property
    def about(self) -> dict[str, Any]:
        """The content of ``batch.json``; empty if there is none."""
        return read_json(self.folder / "batch.json") or {}

    def run_path(self, index: int) -> Path:
        """Return the run directory of an array index.

        Raises:
            FileNotFoundError: if the call has no such index.
        """
        relative = self.about.get("runs", {}).get(str(index))
        if relative is None:
            raise FileNotFoundError(f"{self.folder}: no experiment with index {index}: it was not made by a launch")
        return self.folder.parents[1] / relative

    @property
    def job_id(self) -> str | None:
        """Slurm's number; None while it is unknown."""
        return (read_json(self.folder / "job.json") or {}).get("job_id")

    def record_job_id(self, job_id: str) -> None:
        """Write Slurm's number of the job."""
        write_json(self.folder / "job.json", {"job_id": job_id, "time": time.time()})

    def job_from(self, queue: Queue) -> str | None:
        """Return the job's number.

        Without ``job.json``, after a crash, the job is found in the queue by its script.
        """
        known = self.job_id
        if known is None:
            known = queue.job_of(str(self.script))
            if known is not None:
                self.record_job_id(known)
        return known

    def log_path(self, job_id: str, index: int | None) -> Path:
        """Return Slurm's output file of the job's first task.

        The task writes there until it opens its run directory.
        """
        name = job_id if index is None else f"{job_id}_{index}"
        return self.folder / f"{name}_0_log.out"


@dataclass(frozen=True)
class Assignment:
    """The job of an experiment, or of a study's table.

    Attributes:
        call: the sbatch call.
        index: index in the array; None for a single job.
        cancelled: time of its cancellation by ``launch/cancel.py``, in Unix seconds; 0 = not cancelled.
    """

    call: SbatchCall
    index: int | None
    cancelled: float = 0.0

    def task_in(self, queue: Queue) -> QueuedTask | None:
        """Return the task in the queue; None if it is not there."""
        job_id = self.call.job_from(queue)
        return None if job_id is None else queue.find(job_id, self.index)


def slurm_folder(runs_root: Path) -> Path:
    """Return the folder of the sbatch calls."""
    return runs_root / "slurm"


def user_name() -> str:
    """Return the name of the user on Slurm."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def read_assignment(path: Path, runs_root: Path) -> Assignment | None:
    """Read an assignment; None if there is none.

    Args:
        path: ``slurm.json`` of a run directory, or the file of a study's table.
        runs_root: folder of the run directories.
    """
    content = read_json(path)
    if not content:
        return None
    call = SbatchCall(slurm_folder(runs_root.resolve()) / content["batch"])
    return Assignment(call, content["index"], content.get("cancelled", 0.0))


def is_assigned_to(call: SbatchCall, index: int, run: RunDirectory) -> bool:
    """Whether an experiment is still assigned to an array task.

    A later submission may have replaced the assignment.
    """
    assignment = read_assignment(assignment_path(run.path), call.folder.parents[1])
    return assignment is not None and (assignment.call.name, assignment.index) == (call.name, index)


def queue_of(assignments: Iterable[Assignment]) -> Queue:
    """Read the queue of every user who submitted these jobs.

    It takes one squeue call.

    Raises:
        SlurmError: if there is no Slurm, or it does not answer.
    """
    users = {user for assignment in assignments if (user := assignment.call.about.get("user")) is not None}
    others = users - {user_name()}
    return read_queue({*others, user_name()} if others else ())


def write_assignment(path: Path, assignment: Assignment) -> None:
    """Write an assignment and replace an outdated one. Requires ``submission_lock``."""
    write_json(path, {"batch": assignment.call.name, "index": assignment.index, "cancelled": assignment.cancelled})


def release_assignment(path: Path, call: SbatchCall) -> None:
    """Remove the assignment to an sbatch call that failed."""
    if (read_json(path) or {}).get("batch") == call.name:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def submission_lock(runs_root: Path, *, print_line: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for submissions.

    The operating system releases it when the process dies.

    Args:
        runs_root: folder of the run directories.
        print_line: called with a line if another launch holds the lock.

    Raises:
        OSError: if the folder cannot be written, or another launch holds the lock for too long.
    """
    folder = slurm_folder(runs_root)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = file_lock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        print_line("another launch is submitting: waiting for it")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except TimeoutError:
            raise OSError(
                f"{folder}: another launch has been submitting for {LOCK_TIMEOUT_S:.0f} s: try later"
            ) from None
    try:
        yield
    finally:
        lock.release()
