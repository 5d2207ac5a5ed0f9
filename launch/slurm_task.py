"""A task of a Slurm array: finds its run directory, runs it, and leaves so that it can go on.

Signals and what they lead to; the job's script calls launch/revive.py when the ranks are gone:

    USR2    the walltime is near, or the site warns of a preemption: finish the step, save, leave; back into the queue
    TERM    preemption without a warning, or scancel: finish the step, save, leave; never asking to be queued again
    KILL    nothing can be done: the next start goes on from the last periodic checkpoint
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
from launch.claims import Batch, is_given_to
from launch.job import report_failures, run_experiment

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
    if not is_given_to(batch, index, run):
        print(f"{run.label} has been given to another job since: nothing is done here", file=sys.stderr)
        return 0 if run.result is not None else INTERRUPTED_EXIT_CODE
    inside_slurm.join_ranks()
    report_failures(run)
    said = run.progress or {}
    kept = {name: said[name] for name in ("step", "total") if name in said}
    if inside_slurm.is_first_rank():
        inside_slurm.write_to(str(run.log_path))
        print(f"--- job {inside_slurm.job_name()} on {os.environ.get('SLURM_JOB_NODELIST', '?')}", flush=True)
        run.write_progress(**kept, state="running", phase="starting")
    if INTERRUPTION.requested and "RANK" not in os.environ:  # several ranks leave together, from inside the loop
        run.write_progress(**kept, state="interrupted", signal=INTERRUPTION.signal_name)
        return INTERRUPTED_EXIT_CODE
    try:
        with _delivering(run):
            return run_experiment(run, patience_s=inside_slurm.lock_patience_s())
    except RuntimeError as error:
        if not lost_peer(error):
            raise
        print(f"another process of this job is gone: {error}", file=sys.stderr, flush=True)
        if str((run.progress or {}).get("error")) in str(error):  # else that process has said what was wrong with it
            run.write_progress(**{**(run.progress or {}), "state": "running", "error": ""})
        return PEER_LOST_EXIT_CODE


def lost_peer(error: RuntimeError) -> bool:
    """Whether an error only says that another process of the same job does not answer any more."""
    if "RANK" not in os.environ:
        return False
    from torch.distributed import DistError

    # gloo has no type of its own for it.
    return isinstance(error, DistError) or "gloo" in str(error) or "closed by peer" in str(error).lower()


@contextlib.contextmanager
def _delivering(run: RunDirectory) -> Iterator[None]:
    """Keep an MLflow server up to date beside the job, where the config wants that (``tracking.delivery=direct``)."""
    tracking = run.config["tracking"]
    if tracking["delivery"] != "direct" or not inside_slurm.is_first_rank():
        yield
        return
    from crisscross.courier import Courier

    # In a hurry when told to leave, and when something went wrong: Slurm may be about to kill us.
    with Courier(
        [run], uri=tracking["uri"], experiment=tracking["experiment"], timeout_s=HURRIED_COURIER_SECONDS
    ) as courier:
        yield
        if not INTERRUPTION.requested:
            courier.close(COURIER_SECONDS)
