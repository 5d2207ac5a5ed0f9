"""A task of a Slurm array: finds its run directory, runs it, and leaves so that it can go on.

Signals and what they lead to, each after the step that training is in and a checkpoint:

    USR2       the walltime is near, or the site warns of a preemption: back into the queue
    TERM       preemption without a warning, or scancel: leave, never asking to be queued again (inside_slurm.leave)
    KILL       nothing can be done: the next start goes on from the last periodic checkpoint
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from crisscross.run_directory import RunDirectory
from crisscross.training.interruption import INTERRUPTED_EXIT_CODE, INTERRUPTION, PEER_LOST_EXIT_CODE
from launch import inside_slurm
from launch.claims import Batch, read_claim
from launch.job import report_failures, run_experiment
from launch.records import claim_path

COURIER_SECONDS = 30.0
"""How long the last delivery to an MLflow server may hold up the end of a job; what it misses waits (chosen by us)."""

HURRIED_COURIER_SECONDS = 3.0
"""The same for a job that has been told to leave."""


def main(folder: Path) -> int:
    """Run the experiment that this array task was given and return the exit code."""
    batch = Batch(folder)
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        run = RunDirectory.open(batch.run_path(index))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    claim = read_claim(claim_path(run.path), batch.folder.parents[1])
    if claim is None or (claim.batch.name, claim.index) != (batch.name, index):
        print(f"{run.label} has been given to another job since: nothing is done here", file=sys.stderr)
        return 0 if run.result is not None else INTERRUPTED_EXIT_CODE
    inside_slurm.join_ranks()
    report_failures(run)
    if inside_slurm.is_first_rank():
        inside_slurm.write_to(str(run.log_path))
        print(f"--- job {inside_slurm.job_name()} on {os.environ.get('SLURM_JOB_NODELIST', '?')}", flush=True)
    if INTERRUPTION.requested and "RANK" not in os.environ:  # several ranks leave together, from inside the loop
        return _leave(run)
    try:
        with _delivering(run):
            code = run_experiment(run, patience_s=inside_slurm.lock_patience_s())
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"another process of this job is gone: {error}", file=sys.stderr, flush=True)
        return PEER_LOST_EXIT_CODE
    return _leave(run) if code == INTERRUPTED_EXIT_CODE else code


def lost_peer(error: RuntimeError) -> bool:
    """Whether an error only says that another process of the same job does not answer any more."""
    if "RANK" not in os.environ:
        return False
    from torch.distributed import DistError

    # gloo has no type of its own for it.
    return isinstance(error, DistError) or "gloo" in str(error) or "closed by peer" in str(error).lower()


def _leave(run: RunDirectory) -> int:
    """Leave so that the job goes on later, and return the exit code."""
    if INTERRUPTION.signal_name == "SIGUSR2" and inside_slurm.is_first_rank():
        run.say_queued()
    inside_slurm.leave()
    return INTERRUPTED_EXIT_CODE


@contextlib.contextmanager
def _delivering(run: RunDirectory) -> Iterator[None]:
    """Keep an MLflow server up to date beside the job, where the config wants that (``tracking.delivery=direct``)."""
    tracking = run.config["tracking"]
    if tracking["delivery"] != "direct" or not inside_slurm.is_first_rank():
        yield
        return
    from crisscross.courier import Courier

    courier = Courier([run], uri=tracking["uri"], experiment=tracking["experiment"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(courier)
        yield
        courier.close(HURRIED_COURIER_SECONDS if INTERRUPTION.requested else COURIER_SECONDS)
