"""One experiment, from its run directory: the command of a job.

    python -m launch.job RUN_DIR
    python -m launch.job --batch FOLDER       as a task of a Slurm array: the folder maps its index to a run directory

Exit code 0 if and only if ``result.json`` exists; 75 if interrupted and able to resume; 1 if it failed, with one line
on stderr and the traceback in ``log.txt``; 78 if the environment can run no experiment, with one line on stderr
(launch/environment.py).
"""

from __future__ import annotations

from crisscross.utils.signals import INTERRUPTED_EXIT_CODE, SHUTDOWN
from crisscross.utils.terminal import print_what_can_be_printed

if __name__ == "__main__":
    # Before the imports, which take seconds: a signal must not kill a job that is starting.
    SHUTDOWN.install()

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from launch.environment import ENVIRONMENT_EXIT_CODE, UnusableEnvironmentError
from launch.job.run import follow_parent, report_uncaught, run_experiment
from launch.job.slurm import run_task


def main(arguments: Sequence[str]) -> int:
    """Run the experiment of a run directory and return the exit code."""
    print_what_can_be_printed()
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
    report_uncaught(run)
    if not follow_parent() or SHUTDOWN.requested:
        return INTERRUPTED_EXIT_CODE
    try:
        code = run_experiment(run)
    except UnusableEnvironmentError as error:  # no failure of this experiment, which has not started
        traceback.print_exc(file=sys.stderr)
        print(error, file=sys.stderr, flush=True)
        return ENVIRONMENT_EXIT_CODE
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun takes any other code for a failure; the parent reads the result
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
