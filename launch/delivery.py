"""MLflow from the launch side: one writer for a whole study, nothing imported while nothing is due."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from crisscross.run_directory import RunDirectory
from crisscross.tracking import Courier, TrackingError, deliver_all, mark_latest, pending

CLOSE_SECONDS = 60.0
"""How long the last delivery of a launch may take (chosen by us: a study of 100 runs on SQLite)."""


@contextlib.contextmanager
def delivering(runs: Sequence[RunDirectory], *, tracking: Mapping[str, Any]) -> Iterator[None]:
    """Deliver these runs for as long as the block lasts, and once more at its end.

    Args:
        runs: run directories.
        tracking: ``uri``, ``experiment`` and ``delivery`` of the config.
    """
    place = {"uri": tracking["uri"], "experiment": tracking["experiment"]}
    if tracking["delivery"] == "off" or not any(run.result is None or pending(run, **place) for run in runs):
        yield
        return
    with Courier(runs, **place, timeout_s=CLOSE_SECONDS):
        yield


def note_latest(study: str, fingerprint: str, *, tracking: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Note in MLflow which variant of a study was launched last; say so when that cannot be done."""
    try:
        mark_latest(study, fingerprint, uri=tracking["uri"], experiment=tracking["experiment"])
    except TrackingError as error:
        say(str(error))


def catch_up(runs: Sequence[RunDirectory], *, tracking: Mapping[str, Any]) -> str:
    """Bring MLflow up to date.

    Returns:
        What was sent and what was not, in one line.
    """
    place = {"uri": tracking["uri"], "experiment": tracking["experiment"]}
    due = [run for run in runs if pending(run, **place)]
    if not due:
        return f"MLflow ({place['uri']}) is up to date"
    failures = deliver_all(due, **place)
    line = f"MLflow ({place['uri']}): brought up to date for {len(due) - len(failures)} run(s)"
    return line if not failures else f"{line}; {len(failures)} wait: {failures[0].reason}"
