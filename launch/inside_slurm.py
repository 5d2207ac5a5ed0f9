"""Inside a Slurm job: which rank this process is, where its output goes, and how to leave so that it can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from crisscross.training.interruption import INTERRUPTION

LOCK_PATIENCE_S = 300.0
"""How long a job waits for another process to let go of its run directory (chosen by us): the locks of a node that died
stay until the file server has noticed, which takes a minute or two."""

GRACE_LIMIT_S = 3600.0
"""A preempted job does not wait longer than this to be killed (chosen by us: longer than any site's GraceTime)."""

SCONTROL_TIMEOUT_S = 20.0
"""How long a job that has been told to leave waits for an answer (chosen by us)."""


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


def leave() -> None:
    """Leave an interrupted job so that it goes on later; what was computed is on disk. Every rank comes here.

    After SIGUSR2 the job goes back into the queue at once. After SIGTERM nothing is asked for: Slurm queues a job again
    that it has preempted, but only if it still runs when its grace is over (measured: one that leaves by itself has
    failed, and its dependents with it). So such a job stays until it is killed. One that was cancelled, or told by
    somebody's `kill`, ends.
    """
    found = _facts()
    if INTERRUPTION.signal_name == "SIGUSR2":
        if found.get("JobState") != "RUNNING":  # it was cancelled meanwhile: a requeue would bring it back to life
            return
        if is_first_rank():
            requeue()
        else:
            time.sleep(SCONTROL_TIMEOUT_S)  # a rank that has left would have srun end the one that asks
        return
    if found.get("JobState") == "RUNNING" and _is_preempted(found):
        print("preempted: what was computed is kept; waiting for Slurm to queue this job again", flush=True)
        time.sleep(GRACE_LIMIT_S)


def is_left_alone() -> bool:
    """Whether Slurm neither ends nor preempts this job at the moment."""
    found = _facts()
    return found.get("JobState") == "RUNNING" and not _is_preempted(found)


def _is_preempted(found: Mapping[str, str]) -> bool:
    return found.get("PreemptTime", "None") not in ("None", "N/A", "Unknown")


def requeue() -> bool:
    """Ask Slurm to put this job back into the queue, which also ends it.

    Returns:
        Whether it did; if not, why is said on stderr.
    """
    done = _scontrol("requeue", job_name())
    if done is None or done.returncode:
        why = "scontrol does not answer" if done is None else done.stderr.strip()
        print(
            f"the job could not be queued again ({why}): launch the study again to go on", file=sys.stderr, flush=True
        )
        return False
    return True


def _facts() -> Mapping[str, str]:
    """Return what ``scontrol show job`` says of this job; empty when it does not answer."""
    done = _scontrol("--oneliner", "show", "job", job_name())
    return dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair) if done else {}


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
