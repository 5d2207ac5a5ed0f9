"""What runs inside a job: one experiment, from its run directory.

    python -m launch.job RUN_DIR
    python -m launch.job --batch FOLDER       as a task of a Slurm array: the folder says which run directory

Exit code 0 if and only if ``result.json`` exists; 75 when interrupted and ready to go on; 1 when it failed,
with one line on stderr and the traceback in ``log.txt``; 78 when the environment can run no experiment at all, with
one line on stderr (launch/environment.py).
"""

from __future__ import annotations

from crisscross.training.interruption import INTERRUPTED_EXIT_CODE, INTERRUPTION

if __name__ == "__main__":
    # Before anything that takes time to import: a signal must not kill a job that is starting.
    INTERRUPTION.install()

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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from crisscross.files import DISK_FULL
from crisscross.run_directory import AlreadyRunningError, RunDirectory
from launch.capacity import job_environment, num_processes, thread_environment
from launch.environment import ENVIRONMENT_EXIT_CODE, UnusableEnvironmentError, check_environment
from launch.run_log import handler_for

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(arguments: Sequence[str]) -> int:
    """Run the experiment of a run directory and return the exit code."""
    if len(arguments) == 2 and arguments[0] == "--batch":
        from launch import slurm_task

        return slurm_task.main(Path(arguments[1]))
    if len(arguments) != 1:
        print("usage: python -m launch.job RUN_DIR", file=sys.stderr)
        return 2
    try:
        run = RunDirectory.open(arguments[0])
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    report_failures(run)
    if not follow_parent() or INTERRUPTION.requested:
        return INTERRUPTED_EXIT_CODE
    num_devices = num_processes(run.config)
    try:
        if num_devices > 1 and "RANK" not in os.environ:
            check_environment(run.kind, run.config)  # torchrun would hide the exit code of its ranks
            return run_ranks(run, num_devices)
        code = run_experiment(run)
    except UnusableEnvironmentError as error:  # no fault of this experiment, which has not begun
        traceback.print_exc(file=sys.stderr)
        print(error, file=sys.stderr, flush=True)
        return ENVIRONMENT_EXIT_CODE
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun takes any other code for a failure; our parent knows better
        return 0
    return code


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
    from crisscross import experiment

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
