"""Tracking settings of a launch, and the sync while its jobs run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import TrackingError
from crisscross.tracking.sync import set_latest_tag, unsynced_reason
from crisscross.tracking.sync_process import SyncProcess

CLOSE_SECONDS = 60.0
"""Time limit of the last sync of a launch. ours: a study of 100 runs on SQLite."""


def resolve(tracking: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the tracking settings with ``delivery=auto`` decided.

    Args:
        tracking: ``uri``, ``experiment`` and ``delivery`` of the config.
        where: ``"study"`` (jobs of one launcher, which syncs for them), ``"slurm"`` (one of many jobs), or
            ``"here"`` (one experiment).

    Raises:
        ValueError: if several jobs would write one SQLite file.
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
def syncing(runs: Sequence[RunDirectory], *, tracking: Mapping[str, Any]) -> Iterator[None]:
    """Sync these runs during the block, and once more at its end.

    Args:
        runs: run directories.
        tracking: ``uri``, ``experiment`` and ``delivery`` of the config.
    """
    place = {"uri": tracking["uri"], "experiment": tracking["experiment"]}
    if tracking["delivery"] == "off" or not any(run.result is None or unsynced_reason(run, **place) for run in runs):
        yield
        return
    with SyncProcess(runs, **place, timeout_s=CLOSE_SECONDS):
        yield


def try_set_latest_tag(
    study: str, fingerprint: str, *, tracking: Mapping[str, Any], print_line: Callable[[str], None]
) -> None:
    """Tag the variant of a study that was launched last.

    If MLflow refuses, it prints why.
    """
    try:
        set_latest_tag(study, fingerprint, uri=tracking["uri"], experiment=tracking["experiment"])
    except TrackingError as error:
        print_line(str(error))
