"""A task of a Slurm array: finds its run directory, runs it, and leaves so that it can go on.

Signals and what they lead to; the job's script calls launch/job/requeue.py when the ranks are gone:

    USR2    the walltime is near, or the site warns of a preemption: finish the step, save, leave; back into the queue
    TERM    preemption without a warning, or scancel: finish the step, save, leave; never asking to be queued again
    KILL    nothing can be done: the next start goes on from the last periodic checkpoint
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, INTERRUPTION, PEER_LOST_EXIT_CODE
from launch.job.run import report_failures, run_experiment
from launch.slurm.assignments import SbatchCall, is_given_to

COURIER_SECONDS = 30.0
"""How long the last delivery to an MLflow server may hold up the end of a job; what it misses waits (chosen by us)."""

HURRIED_COURIER_SECONDS = 3.0
"""The same for a job that has been told to leave."""


def run_task(folder: Path) -> int:
    """Run the experiment that this array task was given and return the exit code."""
    batch = SbatchCall(folder)
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        run = RunDirectory.open(batch.run_path(index))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if not is_given_to(batch, index, run):
        print(f"{run.label} has been given to another job since: nothing is done here", file=sys.stderr)
        return 0 if run.result is not None else INTERRUPTED_EXIT_CODE
    join_ranks()
    report_failures(run)
    said = run.progress or {}
    kept = {name: said[name] for name in ("step", "total") if name in said}
    if is_first_rank():
        write_to(str(run.log_path))
        print(f"--- job {job_name()} on {os.environ.get('SLURM_JOB_NODELIST', '?')}", flush=True)
        run.write_progress(**kept, state="running", phase="starting")
    if INTERRUPTION.requested and "RANK" not in os.environ:  # several ranks leave together, from inside the loop
        run.write_progress(**kept, state="interrupted", signal=INTERRUPTION.signal_name)
        return INTERRUPTED_EXIT_CODE
    try:
        with _delivering(run):
            return run_experiment(run, patience_s=lock_patience_s())
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
    if tracking["delivery"] != "direct" or not is_first_rank():
        yield
        return
    from crisscross.tracking.sync_process import SyncProcess

    # In a hurry when told to leave, and when something went wrong: Slurm may be about to kill us.
    with SyncProcess(
        [run], uri=tracking["uri"], experiment=tracking["experiment"], timeout_s=HURRIED_COURIER_SECONDS
    ) as courier:
        yield
        if not INTERRUPTION.requested:
            courier.close(COURIER_SECONDS)


LOCK_PATIENCE_S = 300.0
"""How long a job waits for another process to let go of its run directory (chosen by us): the locks of a node that died
stay until the file server has noticed, which takes a minute or two."""

GRACE_LIMIT_S = 3600.0
"""A preempted job does not wait longer than this to be killed (chosen by us: longer than any site's GraceTime)."""

SCONTROL_TIMEOUT_S = 20.0
"""How long a job that has been told to leave waits for an answer (chosen by us)."""

LOOKS = 6
"""How often it asks (chosen by us)."""


def is_slurm_task() -> bool:
    """Whether srun started this process for one of our scripts."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and "SLURM_JOB_ID" in os.environ


def lock_patience_s() -> float:
    """Return how long this process may wait for another one to let go of its run directory, in seconds."""
    return LOCK_PATIENCE_S if is_slurm_task() else 1.0


def job_name() -> str:
    """Return the job as Slurm calls it: its number, or ``<array>_<index>``."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]


def join_ranks() -> None:
    """Say in torchrun's variables which rank this process is among the tasks of its job; nothing for a single task.

    Told anew at every start, as a job that was requeued may find itself on other nodes. Which GPU a task sees is left
    to Slurm.
    """
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        for name in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def is_first_rank() -> bool:
    """Whether this process keeps the books of its job."""
    return os.environ.get("RANK", "0") == "0"


def write_to(log: str) -> None:
    """Let everything that this process and its children print go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


@dataclass(frozen=True)
class SlurmJobInfo:
    """What Slurm says of this job.

    Attributes:
        answered: whether it said anything.
        is_running: whether it is to go on; not when it was cancelled, ends, or is out of time.
        is_preempted: whether its place has been promised to another one, and it has some grace left.
    """

    answered: bool
    is_running: bool
    is_preempted: bool


def query_job() -> SlurmJobInfo:
    """Ask ``scontrol show job`` until it answers: many jobs that end at the same moment all ask at once."""
    for attempt in range(LOOKS):
        if attempt:
            time.sleep(random.uniform(1, 5))
        done = _scontrol("--oneliner", "show", "job", job_name())
        found = dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair) if done else {}
        if "JobState" in found:
            is_running = found["JobState"] == "RUNNING"
            is_promised = found.get("PreemptTime", "None") not in ("None", "N/A", "Unknown")
            return SlurmJobInfo(True, is_running, is_running and is_promised)
    return SlurmJobInfo(False, False, False)


def requeue_or_wait(job: SlurmJobInfo, signal_name: str | None) -> bool:
    """See to it that an interrupted job starts again, where that is ours to do; for one process of the job.

    After SIGUSR2 the job is put back into the queue. After SIGTERM nothing is asked for: Slurm queues a job again that
    it has preempted, but only if it still runs when its grace is over (measured: one that leaves by itself has failed,
    and its dependents with it), so this waits for the end. A job that was cancelled, or told by somebody's `kill`,
    ends.

    Args:
        job: what Slurm says of it.
        signal_name: what it was told, such as ``SIGUSR2``; None = nothing.

    Returns:
        Whether it will start again.
    """
    if job.answered and not job.is_running:  # a requeue would bring a cancelled job back to life
        return False
    if signal_name == "SIGUSR2":
        return _requeue()
    if job.is_preempted:
        print("preempted: what was computed is kept; waiting for Slurm to queue this job again", flush=True)
        time.sleep(GRACE_LIMIT_S)
    return job.is_preempted


def requeue_sweep_job() -> None:
    """Leave an interrupted job of hydra-submitit-launcher, whose script ends with srun; for every rank."""
    if is_first_rank():
        requeue_or_wait(query_job(), INTERRUPTION.signal_name)
    else:
        time.sleep(2 * SCONTROL_TIMEOUT_S)


def _requeue() -> bool:
    """Ask Slurm to put this job back into the queue, which also ends it. What it refuses is said on stderr."""
    done = _scontrol("requeue", job_name())
    if done is None or done.returncode:
        why = "scontrol does not answer" if done is None else done.stderr.strip()
        print(f"the job could not be queued again ({why}): launch again to go on", file=sys.stderr, flush=True)
        return False
    return True


def _outlive_signals() -> None:
    """In scontrol, before it starts: signals that end a job reach all its processes, this one in mid-question."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["scontrol", *arguments],
            capture_output=True,
            text=True,
            timeout=SCONTROL_TIMEOUT_S,
            check=False,
            preexec_fn=_outlive_signals,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
