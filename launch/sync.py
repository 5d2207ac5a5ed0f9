"""Sync run directories to MLflow, and record the final state of jobs that were killed.

uv run launch/sync.py                        every study
uv run launch/sync.py relaxation             one study
uv run launch/sync.py --watch                again every half minute, until Ctrl-C: MLflow follows the jobs
uv run launch/sync.py runs_root=DIR          another folder of run directories

It is for studies on Slurm without an MLflow server: jobs write only their run directories, and this command writes
MLflow. It may run repeatedly, and from two shells at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crisscross.utils.files import file_lock
from crisscross.utils.terminal import print_what_can_be_printed
from launch.slurm.mlflow_sync import sync_studies
from launch.study.record import read_records, read_single_runs, split_arguments

WATCH_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Sync, print what was sent, and return the exit code."""
    print_what_can_be_printed()
    parser = argparse.ArgumentParser(
        prog="sync.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help="names such as relaxation or relaxation.1a2b3c4d; runs_root=DIR")
    parser.add_argument("--watch", action="store_true", help="again every half minute, until Ctrl-C")
    parser.add_argument("--unless-running", action="store_true", help="do nothing if another sync is running")
    chosen = parser.parse_args(arguments)
    runs_root, names = split_arguments(chosen.studies)
    if not runs_root.is_dir():
        print(f"no study in {runs_root} yet")
        return 0
    lock = file_lock(runs_root / ".sync.lock", timeout_s=0 if chosen.unless_running else -1)
    try:
        while True:
            with lock:
                is_complete = sync(runs_root, names)
            if not chosen.watch:
                return 0 if is_complete else 1
            time.sleep(WATCH_SECONDS)
    except TimeoutError:
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def sync(runs_root: Path, names: Sequence[str]) -> bool:
    """Sync once, print what was sent, and return whether that is everything.

    Raises:
        ValueError: if there is no study of a name.
    """
    records = read_records(runs_root, names)
    singles = [] if names else [read_single_runs(runs_root)]
    lines = sync_studies(runs_root, [*records, *singles])
    for line in dict.fromkeys(lines):
        print(line, flush=True)
    return not any(" wait: " in line for line in lines)


if __name__ == "__main__":
    sys.exit(main())
