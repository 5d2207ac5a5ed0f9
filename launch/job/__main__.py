"""What runs inside a job: one experiment, from its run directory.

    python -m launch.job RUN_DIR
    python -m launch.job --batch FOLDER       as a task of a Slurm array: the folder says which run directory

Exit code 0 if and only if ``result.json`` exists; 75 when interrupted and ready to go on; 1 when it failed,
with one line on stderr and the traceback in ``log.txt``; 78 when the environment can run no experiment at all, with
one line on stderr (launch/environment.py).
"""

from __future__ import annotations

from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, INTERRUPTION

if __name__ == "__main__":
    # Before anything that takes time to import: a signal must not kill a job that is starting.
    INTERRUPTION.install()

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from launch.environment import ENVIRONMENT_EXIT_CODE, UnusableEnvironmentError, check_environment
from launch.job.run import follow_parent, report_failures, run_experiment, run_ranks
from launch.job.slurm import run_task
from launch.resources import num_processes


def main(arguments: Sequence[str]) -> int:
    """Run the experiment of a run directory and return the exit code."""
    if len(arguments) == 2 and arguments[0] == "--batch":
        return run_task(Path(arguments[1]))
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
