"""Bring MLflow up to date with the run directories of studies on Slurm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.client import TrackingError, check_port
from crisscross.tracking.sync import catch_up, pending
from crisscross.utils.redact import mask_passwords
from launch.slurm.commands import SlurmError
from launch.slurm.job_status import read_slurm, record_final_states
from launch.study.record import read_records
from launch.tracking import note_latest


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
        record_final_states(runs_root, records, read_slurm(runs_root, records))
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
