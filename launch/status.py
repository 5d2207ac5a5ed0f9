"""How every experiment of every study stands, here or on Slurm. Looking also sends MLflow what it lacks.

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

from crisscross.tracking.metadata import script_of
from crisscross.utils.files import read_json
from crisscross.utils.redact import mask_passwords
from launch.console import clock, describe
from launch.slurm.commands import SlurmError
from launch.slurm.job_status import SlurmView, Standing, read_slurm, record_final_states, standing_of, table_claim
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
SHOWN_FAILURES = 3
"""Failed experiments of a study whose logs are shown (chosen by us)."""

LOG_LINES = 5
"""Lines of such a log (chosen by us)."""

SILENT_SECONDS = 600.0
"""A running experiment that has said nothing for so long is worth a look (chosen by us)."""

_COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "parent failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "parent cancelled": "yellow",
    "queued": "blue",
}
_PLAIN_WIDTH = 200  # columns of the table where there is no terminal to fit


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the status and return the exit code."""
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
    """Print one table a study, then see to it that MLflow is brought up to date.

    Raises:
        ValueError: when there is no study of a name.
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
        _show_members(runs_root, single, _standings(runs_root, single, slurm), console)
    record_final_states(runs_root, everything, slurm)
    for line in sync_in_background(runs_root, everything):
        _say(console, line)


def _show_study(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView, console: Console) -> None:
    name = f"{record['study']}.{record['fingerprint']}"
    holder = study_holder(runs_root, name)
    standings = _standings(runs_root, record, slurm)
    num_done = sum(standing.state == "done" for standing in standings.values())
    table = _table_job(runs_root, record, slurm)
    on_slurm = {standing.state for standing in standings.values() if standing.job} & {"running", "queued", "waiting"}
    where = "not running"
    if holder:
        where = f"running (process {holder['pid']} on {holder['host']})"
    elif on_slurm:
        counts = {state: sum(item.state == state for item in standings.values()) for state in sorted(on_slurm)}
        where = "on Slurm: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    _say(console, f"{name}: {num_done} of {len(standings)} done, {where}{table}", style="bold")
    _show_members(runs_root, record, standings, console)
    _show_failures(runs_root, record, standings, console)
    if holder is None and not on_slurm and num_done < len(standings):
        again = shlex.join(["uv", "run", script_of(record), *record["overrides"]])
        _say(console, f"go on with: {mask_passwords(again)}")


def _table_job(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView) -> str:
    """Return how the job of the study's table stands, as the end of a line."""
    claim = table_claim(runs_root, record)
    if claim is None:
        return ""
    task = slurm.task(claim)
    if task is None:
        name = f"{record['study']}.{record['fingerprint']}"
        ended = read_json(table_result_path(record_path(runs_root, name))) or {}
        is_its_own = ended.get("time", 0) > claim.call.about.get("created", 0)
        if not is_its_own or not ended["error"]:
            return ""
        return f"; table: failed ({ended['error']}): uv run analysis/make_tables.py makes it"
    return f"; table: job {task.job_id} {'runs' if task.is_running else 'waits for the others'}"


def _show_members(
    runs_root: Path, record: Mapping[str, Any], standings: Mapping[str, Standing], console: Console
) -> None:
    table = Table(box=None, pad_edge=False)
    columns = ["experiment", "state", "progress", "restarts", "log"]
    if any(standing.job for standing in standings.values()):
        columns[4:4] = ["job", "node"]
    for column in columns:
        table.add_column(column, justify="right" if column == "restarts" else "left", overflow="fold")
    labels = {member["identity"]: member["label"] for member in record["members"]}
    for member in record["members"]:
        standing = standings[member["identity"]]
        log = runs_root / member["path"] / "log.txt"
        waits_for = [
            labels.get(parent, parent[:12])
            for parent in member["parents"]
            if parent not in standings or standings[parent].state != "done"
        ]
        cells: dict[str, str | Text] = {
            "experiment": member["label"],
            "state": Text(standing.state, style=_COLOURS.get(standing.state, "")),
            "progress": _detail(standing, waits_for=waits_for, log=log),
            "restarts": str(standing.restarts),
            "job": standing.job,
            "node": standing.nodes,
            "log": os.path.relpath(log) if log.is_file() else "",
        }
        shown = [cells[column] for column in columns]
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in shown))
    console.print(table)


def _show_failures(
    runs_root: Path, record: Mapping[str, Any], standings: Mapping[str, Standing], console: Console
) -> None:
    """Print the ends of the logs of what failed."""
    failed = [member for member in record["members"] if standings[member["identity"]].state == "failed"]
    for member in failed[:SHOWN_FAILURES]:
        lines = last_lines(runs_root / member["path"] / "log.txt", num_lines=LOG_LINES)
        if lines:
            _say(console, f"{member['label']} failed; its log ends:", style="red")
            for line in lines:
                _say(console, f"    {line}")
    if len(failed) > SHOWN_FAILURES:
        _say(console, f"and {len(failed) - SHOWN_FAILURES} more failed", style="red")


def _standings(runs_root: Path, record: Mapping[str, Any], slurm: SlurmView) -> dict[str, Standing]:
    paths = {member["identity"]: runs_root / member["path"] for member in record["members"]}
    return {
        member["identity"]: standing_of(
            paths[member["identity"]],
            [paths[parent] for parent in member["parents"] if parent in paths],
            slurm=slurm,
        )
        for member in record["members"]
    }


def _detail(standing: Standing, *, waits_for: Sequence[str], log: Path) -> str:
    """Return what is worth knowing about an experiment in its state."""
    if standing.state == "failed":
        lines = last_lines(log, num_lines=1)
        return str(standing.progress.get("error") or standing.why or (lines[0] if lines else ""))
    if standing.state == "running" and standing.why:  # what it said before it was told to stop is of no interest
        return standing.why
    parts = [standing.why] if standing.why else []
    if standing.state in ("waiting", "parent failed", "parent cancelled") and waits_for:
        parts.insert(0, f"needs {', '.join(waits_for)}")
    if standing.state == "running":
        parts.insert(0, describe(standing.progress))
        silent_s = time.time() - standing.progress.get("time", time.time())
        if silent_s > SILENT_SECONDS:  # a process that is gone without Slurm having noticed looks like this
            parts.append(f"silent for {clock(silent_s)}")
    if standing.state in ("interrupted", "cancelled", "queued") and standing.progress.get("total"):
        parts.insert(0, f"at {standing.progress.get('step') or 0}/{standing.progress['total']}")
    if standing.state == "queued" and standing.left.startswith("exit code"):
        parts.append(f"its process was killed ({standing.left})")
    if standing.preemptions:
        parts.append(f"preempted {standing.preemptions} time{'s' if standing.preemptions > 1 else ''}")
    return "; ".join(parts)


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
