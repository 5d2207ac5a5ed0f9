"""How every experiment of every study stands. Looking also brings MLflow up to date where it lags behind.

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

from crisscross.record import mask_passwords
from crisscross.run_directory import RunDirectory
from launch.display import describe
from launch.records import Standing, last_lines, read_records, read_single_runs, standing_of, study_holder

WATCH_SECONDS = 5.0
_COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "parent failed": "red",
    "interrupted": "yellow",
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


def split_arguments(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the folder of the run directories and the names of studies among a script's arguments."""
    roots = [item.removeprefix("runs_root=") for item in arguments if item.startswith("runs_root=")]
    return Path(roots[-1] if roots else "runs"), [item for item in arguments if not item.startswith("runs_root=")]


def show(runs_root: Path, names: Sequence[str], *, console: Console) -> None:
    """Print one table a study, then bring MLflow up to date.

    Raises:
        ValueError: when there is no study of a name.
    """
    records = read_records(runs_root, names)
    single = {"members": []} if names else read_single_runs(runs_root)
    if not records and not single["members"]:
        _say(console, f"no study in {runs_root} yet: start one with uv run launch/sweep_relaxation.py")
    for record in records:
        _show_study(runs_root, record, console)
    if single["members"]:
        _say(console, "experiments of no study", style="bold")
        _show_members(runs_root, single, _standings(runs_root, single), console)
    for line in _deliver(runs_root, [*records, single]):
        _say(console, line)


def _show_study(runs_root: Path, record: Mapping[str, Any], console: Console) -> None:
    name = f"{record['study']}.{record['fingerprint']}"
    holder = study_holder(runs_root, name)
    standings = _standings(runs_root, record)
    num_done = sum(standing.state == "done" for standing in standings.values())
    running = f"running (process {holder['pid']} on {holder['host']})" if holder else "not running"
    _say(console, f"{name}: {num_done} of {len(standings)} done, {running}", style="bold")
    _show_members(runs_root, record, standings, console)
    if holder is None and num_done < len(standings):
        again = shlex.join(["uv", "run", f"launch/sweep_{record['study']}.py", *record["overrides"]])
        _say(console, f"go on with: {mask_passwords(again)}")


def _show_members(
    runs_root: Path, record: Mapping[str, Any], standings: Mapping[str, Standing], console: Console
) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("experiment", "state", "progress", "restarts", "log"):
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
        table.add_row(
            Text(member["label"]),
            Text(standing.state, style=_COLOURS.get(standing.state, "")),
            Text(_detail(standing, waits_for=waits_for, log=log)),
            str(standing.restarts),
            Text(os.path.relpath(log) if log.is_file() else ""),
        )
    console.print(table)


def _standings(runs_root: Path, record: Mapping[str, Any]) -> dict[str, Standing]:
    paths = {member["identity"]: runs_root / member["path"] for member in record["members"]}
    return {
        member["identity"]: standing_of(
            paths[member["identity"]], [paths[parent] for parent in member["parents"] if parent in paths]
        )
        for member in record["members"]
    }


def _detail(standing: Standing, *, waits_for: Sequence[str], log: Path) -> str:
    """Return what is worth knowing about an experiment in its state."""
    if standing.state in ("waiting", "parent failed"):
        return f"needs {', '.join(waits_for)}"
    if standing.state == "failed":
        lines = last_lines(log, num_lines=1)
        return str(standing.progress.get("error") or (lines[0] if lines else ""))
    if standing.state == "running":
        return describe(standing.progress)
    if standing.state == "interrupted" and standing.progress.get("total"):
        return f"at {standing.progress.get('step', 0)}/{standing.progress['total']}"
    return ""


def _deliver(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Bring MLflow up to date, store by store, and say what was sent."""
    from launch.delivery import catch_up

    stores: dict[tuple[str, str], dict[Path, RunDirectory]] = {}
    for record in records:
        for member in record["members"]:
            path = runs_root / member["path"]
            if not (path / "run.json").is_file():
                continue
            run = RunDirectory.open(path)
            tracking = record.get("tracking") or run.config["tracking"]
            if tracking["delivery"] != "off":
                stores.setdefault((tracking["uri"], tracking["experiment"]), {})[path] = run
    return [
        catch_up(list(runs.values()), tracking={"uri": uri, "experiment": experiment})
        for (uri, experiment), runs in stores.items()
    ]


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
