"""Sync the run directories of studies on Slurm to MLflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import TrackingError, check_port
from crisscross.tracking.sync import sync_runs, unsynced_reason
from crisscross.utils.redact import mask_passwords
from launch.slurm.commands import SlurmError
from launch.slurm.job_status import read_slurm, record_final_states
from launch.study.record import read_records
from launch.tracking import try_set_latest_tag


def sync_studies(runs_root: Path, records: Sequence[Mapping[str, Any]], *, verify: bool = False) -> list[str]:
    """Record final states of jobs and sync all runs to MLflow.

    The latest variant of each study is tagged as such.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.
        verify: see ``crisscross.tracking.sync.sync_runs``.

    Returns:
        One line a store.
    """
    lines = []
    try:
        record_final_states(runs_root, records, read_slurm(runs_root, records))
    except SlurmError as error:  # the sync does not need Slurm
        lines.append(f"Slurm: {error}")
    for (uri, experiment), runs in runs_by_store(runs_root, records).items():
        lines.append(sync_runs(list(runs.values()), uri, experiment, verify=verify).summary)
    names = {record["study"] for record in records if "study" in record}
    for record in latest_records([record for record in read_records(runs_root) if record["study"] in names]):
        try_set_latest_tag(record["study"], record["fingerprint"], tracking=record["tracking"], print_line=lines.append)
    return lines


def sync_in_background(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Start a process that syncs runs to MLflow, if any is due.

    It is a process of its own because the import of MLflow takes seconds, and a status must be immediate.
    """
    lines, is_due = [], False
    for (uri, experiment), runs in runs_by_store(runs_root, records).items():
        num_due = sum(bool(unsynced_reason(run, uri=uri, experiment=experiment, stale_s=0.0)) for run in runs.values())
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
            start_new_session=True,  # it continues when the shell is closed
        )
    return lines


def latest_records(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the record of the last launch of each study.

    Studies without MLflow are left out.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if "study" in record and record["tracking"]["delivery"] != "off":
            other = newest.get(record["study"])
            if other is None or record["last_launch"]["time"] > other["last_launch"]["time"]:
                newest[record["study"]] = record
    return list(newest.values())


def runs_by_store(
    runs_root: Path, records: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], dict[Path, RunDirectory]]:
    """Return the run directories by MLflow store and experiment.

    Runs without MLflow are left out.
    """
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
