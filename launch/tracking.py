"""MLflow from the launch side: one writer for a whole study, nothing imported while nothing is due."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.client import TrackingError
from crisscross.tracking.sync import pending, set_latest_tag
from crisscross.tracking.sync_process import SyncProcess

CLOSE_SECONDS = 60.0
"""How long the last delivery of a launch may take (chosen by us: a study of 100 runs on SQLite)."""


def resolve(tracking: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the tracking settings with ``delivery=auto`` decided.

    Args:
        tracking: ``uri``, ``experiment`` and ``delivery`` of the config.
        where: ``"study"`` (jobs of one launcher, which delivers for them), ``"slurm"`` (a job among many), or
            ``"here"`` (one experiment, by itself).

    Raises:
        ValueError: when jobs are asked to write one SQLite file.
    """
    chosen = tracking["delivery"]
    is_file = tracking["uri"].startswith("sqlite")
    if chosen == "off":
        return dict(tracking)
    if where == "slurm" and chosen == "direct" and is_file:
        raise ValueError(
            f"tracking.delivery=direct: jobs cannot share the SQLite file of tracking.uri={tracking['uri']}: use"
            " deferred, or an `mlflow server` (tracking.uri=http://HOST:PORT)"
        )
    if where == "study":
        chosen = "deferred"
    elif chosen == "auto":
        chosen = "deferred" if where == "slurm" and is_file else "direct"
    return {**tracking, "delivery": chosen}


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
    with SyncProcess(runs, **place, timeout_s=CLOSE_SECONDS):
        yield


def note_latest(study: str, fingerprint: str, *, tracking: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Note in MLflow which variant of a study was launched last; say so when that cannot be done."""
    try:
        set_latest_tag(study, fingerprint, uri=tracking["uri"], experiment=tracking["experiment"])
    except TrackingError as error:
        say(str(error))
