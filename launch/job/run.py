"""Run one experiment in this process, or one process a device under torchrun."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import IO

from crisscross.run.run_dir import AlreadyRunningError, RunDirectory
from crisscross.utils.files import DISK_FULL
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, INTERRUPTION
from launch.environment import UnusableEnvironmentError, check_environment
from launch.resources import job_environment, thread_environment
from launch.run_log import handler_for

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def run_experiment(run: RunDirectory, *, patience_s: float = 1.0) -> int:
    """Run an experiment in this process and return the exit code of its job.

    Args:
        run: the run directory.
        patience_s: how long to wait for another process to let go of it.

    Raises:
        UnusableEnvironmentError: if no experiment can run in this environment; this one has not begun.
    """
    os.environ.update(thread_environment(run.config))
    logging.basicConfig(level=logging.INFO, handlers=[handler_for()])
    check_environment(run.kind, run.config)
    from crisscross import run_experiment as experiment

    done = experiment.run(run, patience_s=patience_s)
    if os.environ.get("RANK", "0") == "0":  # on another node than the one that wrote it, the file may not be seen yet
        done = run.result is not None
    return 0 if done else INTERRUPTED_EXIT_CODE


def report_failures(run: RunDirectory) -> None:
    """Let an exception that ends this process be told in one line, in the log and in ``progress.json``."""
    sys.excepthook = lambda kind, error, trace: _report(run, kind, error, trace)


def follow_parent() -> bool:
    """Ask Linux for SIGTERM when our parent dies: a killed launcher leaves no job that nobody watches.

    Only a job that a launcher started (it says so in ``CRISSCROSS_LAUNCHER``), or a rank of one, does this.
    A job that was started by hand lives on.

    Returns:
        False when the launcher is dead already.
    """
    launcher = os.environ.get("CRISSCROSS_LAUNCHER")
    if sys.platform != "linux" or not launcher:
        return True
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return "RANK" in os.environ or os.getppid() == int(launcher)


def run_ranks(
    run: RunDirectory, num_devices: int, *, log: IO[str] | None = None, meanwhile: Callable[[], None] = lambda: None
) -> int:
    """Start one process a device under torchrun, pass signals on to them, and return the exit code of the job.

    Args:
        run: the run directory.
        num_devices: number of processes.
        log: where their output goes; None = where ours goes.
        meanwhile: called again and again until they have ended, and once more.
    """
    torchrun_command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    job = [f"--nproc-per-node={num_devices}", "-m", "launch.job", str(run.path)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*torchrun_command, f"--log-dir={folder}", *job],  # it would leave one behind
            stdout=log,
            stderr=log,
            env=job_environment(run.config),
            start_new_session=True,  # a Ctrl-C that reached torchrun would kill the ranks: we tell them ourselves
            preexec_fn=follow_us,
        ) as torchrun,
    ):
        told = False
        while torchrun.poll() is None:
            if INTERRUPTION.requested and not told:
                _tell_ranks(torchrun.pid)
                told = True
            meanwhile()
            time.sleep(0.2)
    meanwhile()
    if run.result is not None:
        return 0
    if torchrun.returncode == 0 or INTERRUPTION.requested:
        return INTERRUPTED_EXIT_CODE
    print(f"{run.label}: a rank failed: see {run.log_path}", file=sys.stderr)
    return 1


def follow_us() -> None:
    """In torchrun, before it starts: die with the job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _tell_ranks(torchrun_pid: int) -> None:
    """Send SIGTERM to the ranks. Told itself, torchrun would kill them after 30 s, checkpoint or not."""
    import psutil

    torchrun = psutil.Process(torchrun_pid)
    for process in torchrun.children() or [torchrun]:
        process.terminate()


def _report(run: RunDirectory, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say why a job failed: one line for people, the whole traceback in its log."""
    line = " ".join(str(error).split()) or kind.__name__
    expected = issubclass(kind, ValueError | OSError | AlreadyRunningError | UnusableEnvironmentError)
    line = line if expected else f"{kind.__name__}: {line}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        line = f"{line}: make room for {run.path} and launch again"
    with contextlib.suppress(OSError):  # stderr may be a file on a full disk, which may be what we have to tell
        print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError), run.log_path.open("a") as log:
        traceback.print_exception(kind, error, trace, file=log)
    if not issubclass(kind, AlreadyRunningError):  # then progress.json is the other process's
        run.write_progress(**{**(run.progress or {}), "state": "failed", "error": line})
