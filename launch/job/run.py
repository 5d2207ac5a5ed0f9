"""One experiment, in this process or in one process a device under torchrun, and how its failure is reported."""

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

import psutil

from crisscross import run_experiment as experiment
from crisscross.run.run_dir import AlreadyRunningError, RunDirectory
from crisscross.run.run_log import handler_for
from crisscross.run.state import RunState
from crisscross.utils.files import DISK_FULL
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, SHUTDOWN
from launch.environment import UnusableEnvironmentError, check_environment
from launch.resources import job_environment, num_processes, thread_environment

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def run_experiment(
    run: RunDirectory,
    *,
    patience_s: float = 1.0,
    log: IO[str] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Run an experiment and return the exit code of its job.

    It runs in this process, or in one process per device under torchrun; each of those calls this function again.

    Args:
        run: the run directory.
        patience_s: how long to wait until another process releases the run directory, in seconds.
        log: output file of the processes under torchrun; None = the output of this process.
        meanwhile: called repeatedly while processes under torchrun run.

    Raises:
        UnusableEnvironmentError: if no experiment can run in this environment. This one has not started.
        ValueError, OSError, RuntimeError: if the experiment failed; see ``failure_line``.
    """
    os.environ.update(thread_environment(run.config))
    logging.basicConfig(level=logging.INFO, handlers=[handler_for()])  # no effect where the caller has set up logging
    check_environment(run.kind, run.config)  # here, because torchrun hides the exit codes of its processes
    num_devices = num_processes(run.config)
    if num_devices > 1 and "RANK" not in os.environ:
        return run_ranks(run, num_devices, log=log, meanwhile=meanwhile)
    done = experiment.run(run, patience_s=patience_s)
    if is_first_rank():  # on the node of another rank the file may not be visible yet
        done = run.result is not None
    return 0 if done else INTERRUPTED_EXIT_CODE


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def report_uncaught(run: RunDirectory) -> None:
    """Report an exception that ends this process.

    It is one line on stderr and in ``progress.json``, with the traceback in the log.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # stderr may be a file on the disk that is full
            print(failure_line(run, error), file=sys.stderr, flush=True)
        record_failure(run, error)

    sys.excepthook = hook


def failure_line(run: RunDirectory, error: BaseException) -> str:
    """Return one line about why an experiment failed."""
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError | OSError | AlreadyRunningError | UnusableEnvironmentError):
        line = f"{type(error).__name__}: {line}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        line = f"{line}: make room for {run.path} and launch again"
    return line


def record_failure(run: RunDirectory, error: BaseException) -> None:
    """Write a failure to the run's log and to ``progress.json``."""
    with contextlib.suppress(OSError), run.log_path.open("a", encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    if not isinstance(error, AlreadyRunningError):  # then progress.json is that of the other process
        run.write_progress(**{**(run.progress or {}), "state": RunState.FAILED, "error": failure_line(run, error)})


def follow_parent() -> bool:
    """Ask Linux for SIGTERM when the parent dies.

    Only a job of a local launcher (``CRISSCROSS_LAUNCHER`` is set), or a rank of such a job, does this. A job that was
    started by hand does not depend on its parent.

    Returns:
        False if the launcher is dead already.
    """
    launcher = os.environ.get("CRISSCROSS_LAUNCHER")
    if sys.platform != "linux" or not launcher:
        return True
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return "RANK" in os.environ or os.getppid() == int(launcher)


def run_ranks(
    run: RunDirectory, num_devices: int, *, log: IO[str] | None = None, meanwhile: Callable[[], None] = lambda: None
) -> int:
    """Run an experiment in one process a device under torchrun.

    Signals to this process are passed on to the ranks.

    Args:
        run: the run directory.
        num_devices: number of processes.
        log: output file of the processes; None = the output of this process.
        meanwhile: called repeatedly until they have ended, and once more.

    Returns:
        The exit code of the job.
    """
    torchrun_command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    job = [f"--nproc-per-node={num_devices}", "-m", "launch.job", str(run.path)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*torchrun_command, f"--log-dir={folder}", *job],  # without --log-dir it leaves a folder behind
            stdout=log,
            stderr=log,
            env=job_environment(run.config),
            start_new_session=True,  # a Ctrl-C that reaches torchrun kills the ranks; SIGTERM from here does not
            preexec_fn=die_with_parent,
        ) as torchrun,
    ):
        is_signaled = False
        while torchrun.poll() is None:
            if SHUTDOWN.requested and not is_signaled:
                _terminate_ranks(torchrun.pid)
                is_signaled = True
            meanwhile()
            time.sleep(0.2)
    meanwhile()
    if run.result is not None:
        return 0
    if torchrun.returncode == 0 or SHUTDOWN.requested:
        return INTERRUPTED_EXIT_CODE
    print(f"{run.label}: a rank failed: see {run.log_path}", file=sys.stderr)
    return 1


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies.

    For a child process, before it starts its program.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _terminate_ranks(torchrun_pid: int) -> None:
    """Send SIGTERM to the ranks.

    torchrun itself, on SIGTERM, kills them after 30 s, checkpoint or not.
    """
    torchrun = psutil.Process(torchrun_pid)
    for process in torchrun.children() or [torchrun]:
        process.terminate()
