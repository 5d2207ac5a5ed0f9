"""Bring MLflow up to date with run directories whose jobs did not do it themselves, however many of them there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crisscross.record import mask_passwords
from crisscross.run_directory import RunDirectory
from crisscross.store_address import store_key
from crisscross.tracking import deliver_all, pending


def catch_up(runs: Sequence[RunDirectory], *, uri: str, experiment: str) -> str:
    """Deliver what MLflow lacks of these runs.

    Args:
        runs: run directories.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        What was sent and what was not, in one line.
    """
    store = mask_passwords(uri)
    due = [run for run in runs if pending(run, uri=uri, experiment=experiment, stale_s=0.0)]
    if not due:
        return f"MLflow ({store}) is up to date"
    failures = deliver_all(due, uri=uri, experiment=experiment, stale_s=0.0)
    line = f"MLflow ({store}): brought up to date for {len(due) - len(failures)} run(s)"
    return line if not failures else f"{line}; {len(failures)} wait: {failures[0].reason}"


def runs_behind(runs_root: Path, *, uri: str, experiment: str) -> list[RunDirectory]:
    """Return the run directories that record themselves in a store which does not have everything of them.

    Args:
        runs_root: folder of the run directories; nothing is found where there is none.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
    """
    behind = []
    for path in sorted(runs_root.glob("*/*/run.json")):
        run = RunDirectory(path.parent)
        if not pending(run, uri=uri, experiment=experiment, stale_s=0.0):
            continue
        tracking = run.config["tracking"]  # read last: most are up to date, and reading it takes longer than the rest
        is_here = store_key(tracking["uri"], tracking["experiment"]) == store_key(uri, experiment)
        if is_here and tracking["delivery"] != "off":
            behind.append(run)
    return behind
