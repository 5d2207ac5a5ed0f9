"""Show the state of every experiment, here or on Slurm, and sync MLflow in the background.

uv run launch/status.py                      every study
uv run launch/status.py relaxation           one study
uv run launch/status.py --watch              again every few seconds
uv run launch/status.py runs_root=DIR        run directories that are elsewhere
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crisscross.run.state import RunState
from crisscross.tracking.metadata import script_of
from crisscross.utils.files import read_json
from crisscross.utils.redact import mask_passwords
from crisscross.utils.terminal import print_what_can_be_printed
from launch.console import clock, describe
from launch.slurm.commands import SlurmError
from launch.slurm.job_status import JobStatus, SlurmView, read_slurm, read_status, record_final_states, table_assignment
from launch.slurm.mlflow_sync import sync_in_background
from launch.study.record import (
    last_lines,
    read_records,
    read_single_runs,
    record_path,
    split_arguments,
    study_holder,
    table_result_path,
)

WATCH_SECONDS = 5.0
SHOWN_FAILURES = 3  # ours: failed experiments of a study whose logs are shown
LOG_LINES = 5  # ours: lines of such a log
SILENT_SECONDS = 600.0  # ours: a running experiment without progress for so long is marked

_COLORS = {
    RunState.DONE: "green",
    RunState.RUNNING: "cyan",
    RunState.FAILED: "red",
    RunState.PARENT_FAILED: "red",
    RunState.INTERRUPTED: "yellow",
    RunState.CANCELLED: "yellow",
    RunState.PARENT_CANCELLED: "yellow",
    RunState.QUEUED: "blue",
}
_PLAIN_WIDTH = 200  # columns of the table if the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status and return the exit code."""
    print_what_can_be_printed()
    parser = argparse.ArgumentParser(
        prog="status.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help="names such as relaxation or relaxation.1a2b3c4d; runs_root=DIR")
    parser.add_argument("--watch", action="store_true", help="again every few seconds, until Ctrl-C")
    chosen = parser.parse_args(arguments)
    roots, names = split_arguments(chosen.studies)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    try:
        while True:
            show(roots, names, console=console)
            if not chosen.watch:
                return 0
            time.sleep(WATCH_SECONDS)
            console.clear()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def show(runs_root: Path, names: Sequence[str], *, console: Console) -> None:
    """Print one table per study, then sync MLflow in the background.

    Raises:
        ValueError: if there is no study of a name.
    """
    records = read_records(runs_root, names)
    single = {"members": []} if names else read_single_runs(runs_root)
    if not records and not single["members"]:
        _say(console, f"no study in {runs_root} yet: start one with uv run launch/sweep_relaxation.py")
    everything = [*records, single]
    try:
        slurm = read_slurm(runs_root, everything)
    except SlurmError as error:
        slurm = SlurmView()
        _say(console, f"Slurm: {error}; what follows is what the run directories say", style="yellow")
    for record in records:
        _show_study(runs_root, record, slurm, console)
    if single["members"]:
        _say(console, "experiments of no study", style="bold")
        _show_members(runs_root, single, _read_statuses(runs_root, single, slurm), console)
    record_final_states(runs_root, everything, slurm)
    for line in sync_in_background(runs_root, everything):
        _say(console, line)


def _show_study(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView, console: Console) -> None:
    name = f"{record['study']}.{record['fingerprint']}"
    holder = study_holder(runs_root, name)
    statuses = _read_statuses(runs_root, record, slurm)
    num_done = sum(status.state is RunState.DONE for status in statuses.values())
    table = _table_job(runs_root, record, slurm)
    on_slurm = {status.state for status in statuses.values() if status.job and not status.state.is_over}
    where = "not running"
    if holder:
        where = f"running (process {holder['pid']} on {holder['host']})"
    elif on_slurm:
        counts = {state: sum(item.state == state for item in statuses.values()) for state in sorted(on_slurm)}
        where = "on Slurm: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    _say(console, f"{name}: {num_done} of {len(statuses)} done, {where}{table}", style="bold")
    _show_members(runs_root, record, statuses, console)
    _show_failures(runs_root, record, statuses, console)
    if holder is None and not on_slurm and num_done < len(statuses):
        again = shlex.join(["uv", "run", script_of(record), *record["overrides"]])
        _say(console, f"go on with: {mask_passwords(again)}")


def _table_job(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView) -> str:
    """Return the state of the job of the study's table.

    Returns:
        The end of a line.
    """
    assignment = table_assignment(runs_root, record)
    if assignment is None:
        return ""
    task = slurm.task(assignment)
    if task is None:
        name = f"{record['study']}.{record['fingerprint']}"
        ended = read_json(table_result_path(record_path(runs_root, name))) or {}
        is_its_own = ended.get("time", 0) > assignment.call.about.get("created", 0)
        if not is_its_own or not ended["error"]:
            return ""
        return f"; table: failed ({ended['error']}): uv run analysis/make_tables.py makes it"
    return f"; table: job {task.job_id} {'runs' if task.is_running else 'waits for the others'}"


def _show_members(
    runs_root: Path, record: Mapping[str, Any], statuses: Mapping[str, JobStatus], console: Console
) -> None:
    table = Table(box=None, pad_edge=False)
    columns = ["experiment", "state", "progress", "restarts", "log"]
    if any(status.job for status in statuses.values()):
        columns[4:4] = ["job", "node"]
    for column in columns:
        table.add_column(column, justify="right" if column == "restarts" else "left", overflow="fold")
    labels = {member["identity"]: member["label"] for member in record["members"]}
    for member in record["members"]:
        status = statuses[member["identity"]]
        log = runs_root / member["path"] / "log.txt"
        waits_for = [
            labels.get(parent, parent[:12])
            for parent in member["parents"]
            if parent not in statuses or statuses[parent].state is not RunState.DONE
        ]
        cells: dict[str, str | Text] = {
            "experiment": member["label"],
            "state": Text(status.state, style=_COLORS.get(status.state, "")),
            "progress": _detail(status, waits_for=waits_for, log=log),
            "restarts": str(status.restarts),
            "job": status.job,
            "node": status.nodes,
            "log": os.path.relpath(log) if log.is_file() else "",
        }
        shown = [cells[column] for column in columns]
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in shown))
    console.print(table)


def _show_failures(
    runs_root: Path, record: Mapping[str, Any], statuses: Mapping[str, JobStatus], console: Console
) -> None:
    """Print the last log lines of failed experiments."""
    failed = [member for member in record["members"] if statuses[member["identity"]].state is RunState.FAILED]
    for member in failed[:SHOWN_FAILURES]:
        lines = last_lines(runs_root / member["path"] / "log.txt", num_lines=LOG_LINES)
        if lines:
            _say(console, f"{member['label']} failed; its log ends:", style="red")
            for line in lines:
                _say(console, f"    {line}")
    if len(failed) > SHOWN_FAILURES:
        _say(console, f"and {len(failed) - SHOWN_FAILURES} more failed", style="red")


def _read_statuses(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView) -> dict[str, JobStatus]:
    paths = {member["identity"]: runs_root / member["path"] for member in record["members"]}
    return {
        member["identity"]: read_status(
            paths[member["identity"]],
            [paths[parent] for parent in member["parents"] if parent in paths],
            slurm=slurm,
        )
        for member in record["members"]
    }


def _detail(status: JobStatus, *, waits_for: Sequence[str], log: Path) -> str:
    """Return what to print about an experiment in its state."""
    if status.state is RunState.FAILED:
        lines = last_lines(log, num_lines=1)
        return str(status.progress.get("error") or status.why or (lines[0] if lines else ""))
    if status.state is RunState.RUNNING and status.why:  # its progress before the signal does not matter
        return status.why
    parts = [status.why] if status.why else []
    if status.state in (RunState.WAITING, RunState.PARENT_FAILED, RunState.PARENT_CANCELLED) and waits_for:
        parts.insert(0, f"needs {', '.join(waits_for)}")
    if status.state is RunState.RUNNING:
        parts.insert(0, describe(status.progress))
        silent_s = time.time() - status.progress.get("time", time.time())
        if silent_s > SILENT_SECONDS:  # as a dead process that Slurm has not noticed
            parts.append(f"silent for {clock(silent_s)}")
    if status.state in (RunState.INTERRUPTED, RunState.CANCELLED, RunState.QUEUED) and status.progress.get("total"):
        parts.insert(0, f"at {status.progress.get('step') or 0}/{status.progress['total']}")
    if status.state is RunState.QUEUED and status.left.startswith("exit code"):
        parts.append(f"its process was killed ({status.left})")
    if status.preemptions:
        parts.append(f"preempted {status.preemptions} time{'s' if status.preemptions > 1 else ''}")
    return "; ".join(parts)


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
