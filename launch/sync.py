"""Bring MLflow up to date with the run directories, and say what has become of jobs that could not say it themselves.

uv run launch/sync.py                        every study
uv run launch/sync.py relaxation             one study
uv run launch/sync.py --watch                again every half minute, until Ctrl-C: MLflow follows the jobs
uv run launch/sync.py runs_root=DIR          run directories that are elsewhere

For studies on Slurm without an MLflow server: jobs write their run directories alone, this writes MLflow. Again, or
from two shells at once, is harmless.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.catch_up import catch_up
from crisscross.locks import file_lock
from crisscross.record import mask_passwords
from crisscross.run_directory import RunDirectory
from crisscross.store_address import TrackingError, check_port
from crisscross.tracking import pending
from launch.delivery import note_latest
from launch.records import read_records, read_single_runs, split_arguments
from launch.sbatch import SlurmError
from launch.standing import read_slurm, settle

WATCH_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Deliver, say what was delivered, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="sync.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help="names such as relaxation or relaxation.1a2b3c4d; runs_root=DIR")
    parser.add_argument("--watch", action="store_true", help="again every half minute, until Ctrl-C")
    parser.add_argument("--unless-running", action="store_true", help="leave it to another one that is at it")
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
    """Deliver once, say what was delivered, and return whether that is everything.

    Raises:
        ValueError: when there is no study of a name.
    """
    records = read_records(runs_root, names)
    singles = [] if names else [read_single_runs(runs_root)]
    lines = bring_up_to_date(runs_root, [*records, *singles])
    for line in dict.fromkeys(lines):
        print(line, flush=True)
    return not any(" wait: " in line for line in lines)


def bring_up_to_date(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settle jobs that have ended, deliver all that MLflow lacks, and note which variant of each study is the latest.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.

    Returns:
        A line a store.
    """
    lines = []
    try:
        settle(runs_root, records, read_slurm(runs_root, records))
    except SlurmError as error:  # deliver all the same
        lines.append(f"Slurm: {error}")
    for (uri, experiment), runs in stores(runs_root, records).items():
        lines.append(catch_up(list(runs.values()), uri=uri, experiment=experiment))
    names = {record["study"] for record in records if "study" in record}
    for record in latest([record for record in read_records(runs_root) if record["study"] in names]):
        note_latest(record["study"], record["fingerprint"], tracking=record["tracking"], say=lines.append)
    return lines


def deliver_behind(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Let another process bring MLflow up to date where something is due, and return a line a store.

    Importing MLflow alone takes seconds, in which nobody should have to wait for a status.
    """
    lines, is_due = [], False
    for (uri, experiment), runs in stores(runs_root, records).items():
        num_due = sum(bool(pending(run, uri=uri, experiment=experiment, stale_s=0.0)) for run in runs.values())
        store = f"MLflow ({mask_passwords(uri)})"
        if not num_due:
            lines.append(f"{store} is up to date")
            continue
        try:
            check_port(uri)
        except TrackingError as error:
            lines.append(f"{num_due} run(s) wait for {error}")
            continue
        is_due = True
        lines.append(
            f"{store}: {num_due} run(s) are being brought up to date in the background (launch/sync.py waits for it)"
        )
    if is_due:
        subprocess.Popen(
            [sys.executable, "-m", "launch.sync", "--unless-running", f"runs_root={runs_root}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it outlives the shell
        )
    return lines


def latest(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return of each study the record that was launched last, where it is recorded in MLflow at all."""
    newest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if "study" in record and record["tracking"]["delivery"] != "off":
            other = newest.get(record["study"])
            if other is None or record["last_launch"]["time"] > other["last_launch"]["time"]:
                newest[record["study"]] = record
    return list(newest.values())


def stores(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[Path, RunDirectory]]:
    """Return the run directories by MLflow store and experiment; those that are not recorded are left out."""
    found: dict[tuple[str, str], dict[Path, RunDirectory]] = {}
    for record in records:
        for member in record["members"]:
            path = runs_root / member["path"]
            if not (path / "run.json").is_file():
                continue
            run = RunDirectory.open(path)
            tracking = record.get("tracking") or run.config["tracking"]
            if tracking["delivery"] != "off":
                found.setdefault((tracking["uri"], tracking["experiment"]), {})[path] = run
    return found


if __name__ == "__main__":
    sys.exit(main())
