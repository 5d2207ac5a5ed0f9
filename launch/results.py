"""Print the tables, report and next steps of a launch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crisscross.tracking.address import TrackingError
from crisscross.utils.redact import mask_passwords
from launch.console import print_line
from launch.study.plan import Plan
from launch.tracking import try_set_latest_tag


def study_hashes(plans: Sequence[Plan]) -> dict[str, str]:
    """Return study hashes by study; empty for a single plan."""
    return {plan.launch.study.name: plan.fingerprint for plan in plans} if len(plans) > 1 else {}


def print_table(plan: Plan, console: Console) -> bool:
    """Print the table of a study; return whether it is complete."""
    from analysis.make_tables import print_tables  # imports SQLAlchemy, which a dry run does not need

    def make(uri: str, experiment: str) -> int:
        study, study_hash = plan.launch.study.name, plan.fingerprint
        return print_tables(uri, experiment=experiment, study=study, study_hash=study_hash, out="tables")

    return _from_mlflow([plan], console, make)


def print_report(plans: Sequence[Plan], console: Console) -> bool:
    """Print the tables of several studies and write figures and one report.

    Returns:
        Whether everything was made.
    """
    from analysis.make_report import make_report  # as above

    def make(uri: str, experiment: str) -> int:
        return make_report(uri, experiment=experiment, studies=study_hashes(plans), runs_root=plans[0].runs_root)

    return _from_mlflow(plans, console, make)


def _from_mlflow(plans: Sequence[Plan], console: Console, make: Callable[[str, str], int]) -> bool:
    """Tag studies as the latest in MLflow and make their tables.

    Args:
        plans: the studies.
        console: output.
        make: takes the URI of the store and the name of the MLflow experiment, and returns an exit code.

    Returns:
        Whether the exit code is 0.
    """
    tracking = plans[0].config["tracking"]
    if tracking["delivery"] == "off":
        print_line(console, "tracking.delivery=off: nothing was recorded in MLflow, so there is no table")
        return True
    for plan in plans:
        study, study_hash = plan.launch.study.name, plan.fingerprint
        try_set_latest_tag(study, study_hash, tracking=tracking, print_line=lambda text: print_line(console, text))
    try:
        return make(tracking["uri"], tracking["experiment"]) == 0
    except (TrackingError, ValueError, OSError) as error:
        print_line(console, f"no table: {mask_passwords(str(error))}", style="red")
        return False


def print_next_steps(plan: Plan, console: Console) -> None:
    """Print next steps after a launch."""
    for line in next_steps(plan.runs_root, tracking=plan.config["tracking"]):
        print_line(console, line)


def next_steps(runs_root: Path, *, tracking: Mapping[str, Any]) -> list[str]:
    """Return lines with next steps after a launch. Passwords are masked.

    Args:
        runs_root: folder of the run directories.
        tracking: ``uri`` and ``experiment`` of the config.
    """
    from analysis.make_tables import command_line, is_default  # as above

    uri = mask_passwords(tracking["uri"])
    root = "" if runs_root.resolve() == Path("runs").resolve() else " " + shlex.quote(f"runs_root={runs_root}")
    browse = "uv run mlflow ui"
    if uri.startswith(("http://", "https://")):
        browse = f"open {uri} in a browser"
    elif not is_default(uri):
        browse += f" --backend-store-uri {shlex.quote(uri)}"
    return [
        f"runs: {runs_root}/   tables: tables/   a run's log: log.txt in its folder",
        "next:",
        f"  uv run launch/status.py{root:<40}  the state of every experiment",
        f"  {command_line(uri, experiment=tracking['experiment'])}",
        f"  {browse}",
    ]
