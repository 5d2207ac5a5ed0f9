"""A task of a Slurm array: find its run directory, run it, exit so that it can resume.

Reaction to signals; the job's script calls launch/job/requeue.py after the ranks have ended:

    USR2    the walltime is near, or the site warns of a preemption: finish the step, save, exit, requeue
    TERM    preemption without a warning, or scancel: finish the step, save, exit, no requeue
    KILL    the next start resumes from the last periodic checkpoint
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

from crisscross.run.run_dir import RunDirectory, slurm_job_id
from crisscross.run.state import RunState
from crisscross.tracking.sync_process import SyncProcess
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, PEER_LOST_EXIT_CODE, SHUTDOWN
from launch.job.run import is_first_rank, report_uncaught, run_experiment
from launch.slurm.assignments import SbatchCall, is_assigned_to

SYNC_SECONDS = 30.0  # ours: limit of the last sync to an MLflow server before a job ends; the next sync sends the rest
SHORT_SYNC_SECONDS = 3.0  # ours: the same after a signal or a failure, when Slurm may kill the job
LOCK_PATIENCE_S = 300.0  # ours: a file server takes a minute or two to release the locks of a dead node
GRACE_LIMIT_S = 3600.0  # ours: limit of the wait for the end of a preempted job; longer than any site's GraceTime
SCONTROL_TIMEOUT_S = 20.0  # ours: limit of one scontrol call in a job that ends
QUERY_ATTEMPTS = 6  # ours


def run_task(folder: Path) -> int:
    """Run the experiment of this array task and return the exit code."""
    call = SbatchCall(folder)
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        run = RunDirectory.open(call.run_path(index))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if not is_assigned_to(call, index, run):
        print(f"{run.label} is assigned to a later job: nothing is done here", file=sys.stderr)
        return 0 if run.result is not None else INTERRUPTED_EXIT_CODE
    join_ranks()
    report_uncaught(run)
    progress = run.progress or {}
    kept = {name: progress[name] for name in ("step", "total") if name in progress}
    if is_first_rank():
        redirect_output(str(run.log_path))
        print(f"--- job {slurm_job_id()} on {os.environ.get('SLURM_JOB_NODELIST', '?')}", flush=True)
        run.write_progress(**kept, state=RunState.RUNNING, phase="starting")
    if SHUTDOWN.requested and "RANK" not in os.environ:  # several ranks exit together, in the loop
        run.write_progress(**kept, state=RunState.INTERRUPTED, signal=SHUTDOWN.signal_name)
        return INTERRUPTED_EXIT_CODE
    try:
        with _syncing(run):
            return run_experiment(run, patience_s=lock_patience_s())
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        print(f"another process of this job is gone: {error}", file=sys.stderr, flush=True)
        if str((run.progress or {}).get("error")) in str(error):  # else the other process has written its own error
            run.write_progress(**{**(run.progress or {}), "state": RunState.RUNNING, "error": ""})
        return PEER_LOST_EXIT_CODE


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error means that another rank has ended."""
    if "RANK" not in os.environ:
        return False
    from torch.distributed import DistError  # here: requeue.py imports this module and need not wait for torch

    # gloo has no error type of its own.
    return isinstance(error, DistError) or "gloo" in str(error) or "closed by peer" in str(error).lower()


@contextlib.contextmanager
def _syncing(run: RunDirectory) -> Iterator[None]:
    """Sync the run to an MLflow server during the block if ``tracking.delivery=direct``."""
    tracking = run.config["tracking"]
    if tracking["delivery"] != "direct" or not is_first_rank():
        yield
        return
    with SyncProcess(
        [run], uri=tracking["uri"], experiment=tracking["experiment"], timeout_s=SHORT_SYNC_SECONDS
    ) as sync:
        yield
        if not SHUTDOWN.requested:
            sync.close(SYNC_SECONDS)


def is_slurm_task() -> bool:
    """Whether srun started this process in a script of submitit."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and "SLURM_JOB_ID" in os.environ


def lock_patience_s() -> float:
    """Return how long to wait for the run directory's lock, in seconds."""
    return LOCK_PATIENCE_S if is_slurm_task() else 1.0


def join_ranks() -> None:
    """Set torchrun's environment variables for this task of a job.

    A single task needs none.

    They are set at every start, because a requeued job may run on other nodes. Slurm sets the visible GPUs.
    """
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from submitit.helpers import TorchDistributedEnvironment  # here: only jobs of several tasks need it

        for name in ("MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def redirect_output(log: str) -> None:
    """Redirect the output of this process and its children to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


@dataclass(frozen=True)
class SlurmJobInfo:
    """Slurm's state of this job.

    Attributes:
        answered: whether Slurm answered.
        is_running: whether the job is in state RUNNING; not after a cancellation or at the end of its time.
        is_preempted: whether it runs in the grace time of a preemption.
    """

    answered: bool
    is_running: bool
    is_preempted: bool


def query_job() -> SlurmJobInfo:
    """Query ``scontrol show job`` for this job.

    The query is repeated, because many jobs that end together overload the controller.
    """
    for attempt in range(QUERY_ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(1, 5))
        done = _scontrol("--oneliner", "show", "job", slurm_job_id() or "")
        found = dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair) if done else {}
        if "JobState" in found:
            is_running = found["JobState"] == "RUNNING"
            is_promised = found.get("PreemptTime", "None") not in ("None", "N/A", "Unknown")
            return SlurmJobInfo(True, is_running, is_running and is_promised)
    return SlurmJobInfo(False, False, False)


def requeue_or_wait(job: SlurmJobInfo, signal_name: str | None) -> bool:
    """Requeue an interrupted job if Slurm will not.

    Called by one process of the job.

    After SIGUSR2 the job is requeued. After SIGTERM it is not: Slurm requeues a job that it preempted, but only if it
    still runs at the end of its grace time (measured: one that exits earlier has failed, and its dependents with it),
    so this waits for the end. A job that was cancelled, or got SIGTERM from `kill`, ends.

    Args:
        job: Slurm's state of the job.
        signal_name: the signal that interrupted it, such as ``SIGUSR2``; None = none.

    Returns:
        Whether the job will start again.
    """
    if job.answered and not job.is_running:  # a requeue would restart a cancelled job
        return False
    if signal_name == "SIGUSR2":
        return _requeue()
    if job.is_preempted:
        print("preempted: what was computed is kept; waiting for Slurm to queue this job again", flush=True)
        time.sleep(GRACE_LIMIT_S)
    return job.is_preempted


def requeue_sweep_job() -> None:
    """Requeue an interrupted job of hydra-submitit-launcher.

    Called by every rank, because the job's script ends with srun.
    """
    if is_first_rank():
        requeue_or_wait(query_job(), SHUTDOWN.signal_name)
    else:
        time.sleep(2 * SCONTROL_TIMEOUT_S)


def _requeue() -> bool:
    """Requeue this job, which also ends it.

    A refusal is printed on stderr.
    """
    done = _scontrol("requeue", slurm_job_id() or "")
    if done is None or done.returncode:
        why = "scontrol does not answer" if done is None else done.stderr.strip()
        print(f"the job could not be queued again ({why}): launch again to go on", file=sys.stderr, flush=True)
        return False
    return True


def _ignore_signals() -> None:
    """Ignore signals that end a job; for scontrol before it starts.

    They reach all processes of a job.
    """
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
            preexec_fn=_ignore_signals,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
