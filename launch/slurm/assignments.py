"""Which job an experiment was given to: written before the job exists, so that no crash can leave a job unknown.

runs/slurm/<batch>/batch.json     the experiments of one sbatch call, by array index; written first
runs/slurm/<batch>/script.sh      what sbatch was given. squeue tells a job's script: a job is recognised by it
runs/slurm/<batch>/job.json       the job's number; written last
runs/slurm/.lock                  held while a launch reconciles and submits
<run directory>/slurm.json        the claim: batch and index of the job that runs this experiment
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
from launch.study.record import claim_path

LOCK_TIMEOUT_S = 300.0
"""How long a launch waits for another one to submit (chosen by us: thousands of experiments take seconds)."""


@dataclass(frozen=True)
class SbatchCall:
    """One sbatch call: its folder is all that its jobs are handed.

    Attributes:
        folder: see above.
    """

    folder: Path

    @classmethod
    def create(cls, runs_root: Path, *, kind: str, runs: Mapping[int, Path], dependency: str | None) -> SbatchCall:
        """Make the folder of a batch.

        Args:
            runs_root: folder of the run directories.
            kind: which resources it asks for.
            runs: run directories by array index.
            dependency: what it waits for, in the words of sbatch.
        """
        root = runs_root.resolve()
        batch = cls(slurm_folder(root) / uuid.uuid4().hex[:12])
        batch.folder.mkdir(mode=0o700)
        write_json(
            batch.folder / "batch.json",
            {
                "kind": kind,
                "runs": {str(index): os.path.relpath(path, root) for index, path in runs.items()},
                "dependency": dependency,
                "created": time.time(),
                "user": user_name(),
            },
        )
        return batch

    @property
    def name(self) -> str:
        """12 hexadecimal digits."""
        return self.folder.name

    @property
    def script(self) -> Path:
        """The file that sbatch is given."""
        return self.folder / "script.sh"

    @property
    def about(self) -> dict[str, Any]:
        """The content of ``batch.json``; empty when it is gone."""
        return read_json(self.folder / "batch.json") or {}

    def run_path(self, index: int) -> Path:
        """Return the run directory of an array index.

        Raises:
            FileNotFoundError: when the batch has no such index.
        """
        relative = self.about.get("runs", {}).get(str(index))
        if relative is None:
            raise FileNotFoundError(f"{self.folder}: no experiment with index {index}: it was not made by a launch")
        return self.folder.parents[1] / relative

    @property
    def job_id(self) -> str | None:
        """Slurm's number; None as long as it is not known."""
        return (read_json(self.folder / "job.json") or {}).get("job_id")

    def note_job(self, job_id: str) -> None:
        """Remember the number that Slurm has given."""
        write_json(self.folder / "job.json", {"job_id": job_id, "time": time.time()})

    def job_from(self, queue: Queue) -> str | None:
        """Return the job's number, finding it by its script where a crash kept it from being noted."""
        known = self.job_id
        if known is None:
            known = queue.job_of(str(self.script))
            if known is not None:
                self.note_job(known)
        return known

    def log_path(self, job_id: str, index: int | None) -> Path:
        """Return where Slurm writes what the job's first task prints before it opens its run directory."""
        name = job_id if index is None else f"{job_id}_{index}"
        return self.folder / f"{name}_0_log.out"


@dataclass(frozen=True)
class Assignment:
    """The job that an experiment, or a study's table, was given to.

    Attributes:
        batch: its batch.
        index: index in the array; None for a job by itself.
        cancelled: when ``launch/cancel.py`` ended it, in Unix seconds; 0 = it did not.
    """

    batch: SbatchCall
    index: int | None
    cancelled: float = 0.0

    def task_in(self, queue: Queue) -> QueuedTask | None:
        """Return the job, None when it is not in the queue (any more)."""
        job_id = self.batch.job_from(queue)
        return None if job_id is None else queue.find(job_id, self.index)


def slurm_folder(runs_root: Path) -> Path:
    """Return the folder of the batches."""
    return runs_root / "slurm"


def user_name() -> str:
    """Return who we are to Slurm."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def read_claim(path: Path, runs_root: Path) -> Assignment | None:
    """Read a claim; None when there is none.

    Args:
        path: ``slurm.json`` of a run directory, or the claim of a study's table.
        runs_root: folder of the run directories.
    """
    content = read_json(path)
    if not content:
        return None
    batch = SbatchCall(slurm_folder(runs_root.resolve()) / content["batch"])
    return Assignment(batch, content["index"], content.get("cancelled", 0.0))


def is_given_to(batch: SbatchCall, index: int, run: RunDirectory) -> bool:
    """Whether an array task is the one that runs an experiment: another submission may have taken it over."""
    claim = read_claim(claim_path(run.path), batch.folder.parents[1])
    return claim is not None and (claim.batch.name, claim.index) == (batch.name, index)


def queue_of(claims: Iterable[Assignment]) -> Queue:
    """Ask squeue once about the jobs of these claims, whoever submitted them.

    Raises:
        SlurmError: when there is no Slurm, or it does not answer.
    """
    users = {user for claim in claims if (user := claim.batch.about.get("user")) is not None}
    others = users - {user_name()}
    return read_queue({*others, user_name()} if others else ())


def write_claim(path: Path, claim: Assignment) -> None:
    """Write a claim in the place of one that is void. Only under ``submitting``."""
    write_json(path, {"batch": claim.batch.name, "index": claim.index, "cancelled": claim.cancelled})


def withdraw_claim(path: Path, batch: SbatchCall) -> None:
    """Take back the claim of a batch that was not submitted."""
    if (read_json(path) or {}).get("batch") == batch.name:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def submitting(runs_root: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the right to give experiments to Slurm. The operating system lets go of it when the process dies.

    Args:
        runs_root: folder of the run directories.
        say: told when another launch has to be waited for.

    Raises:
        OSError: when the folder cannot be written, or another launch does not come to an end.
    """
    folder = slurm_folder(runs_root)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = file_lock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        say("another launch is submitting: waiting for it")
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
