"""Sync run directories to MLflow.

Every step may be cut off by a kill and repeated. Parameters, tags and points that MLflow has are sent again without
harm, because a point keeps the time at which it was written to the history.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import STALE_SECONDS, RunStatus, read_state
from crisscross.tracking import metadata, ui
from crisscross.tracking.address import (
    LOCK_TIMEOUT_S,
    TrackingError,
    absolute,
    has_content,
    sqlite_file,
    store_key,
)
from crisscross.tracking.store import open_store
from crisscross.tracking.sync_state import Point, Sent, SyncState, batches, committed_bytes
from crisscross.utils.files import file_lock
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:  # it imports MLflow
    from crisscross.tracking.client import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncReport:
    """Outcome of one ``sync_runs``.

    Attributes:
        store: MLflow's tracking URI, without its password.
        num_due: number of runs that were to be sent.
        failures: reason by run directory, of the runs that could not be sent.
    """

    store: str
    num_due: int = 0
    failures: dict[Path, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Reason of the first failure; empty if there is none."""
        return next(iter(self.failures.values()), "")

    @property
    def summary(self) -> str:
        """What was sent and what was not, in one line."""
        if not self.num_due:
            return f"MLflow ({self.store}) is up to date"
        line = f"MLflow ({self.store}): brought up to date for {self.num_due - len(self.failures)} run(s)"
        return line if not self.failures else f"{line}; {len(self.failures)} wait: {self.reason}"


def sync_runs(
    runs: Sequence[RunDirectory],
    uri: str,
    experiment: str,
    verify: bool = False,
    *,
    skip_synced: bool = True,
    stale_s: float = 0.0,
) -> SyncReport:
    """Send to MLflow what it lacks of these runs.

    A run that fails does not end the sync. It may be repeated or run in two processes at once. A server that cannot be
    reached is tried once, with one warning, and every remaining run is a failure.

    Args:
        runs: run directories.
        uri: MLflow's tracking URI: ``sqlite:///FILE``, ``http://HOST:PORT``, ...
        experiment: name of the MLflow experiment; created if missing.
        verify: whether to look in MLflow which runs are missing, whatever ``tracking.json`` has. It fills a store that
            was lost, or replaced by an older copy.
        skip_synced: whether to skip runs whose ``unsynced_reason`` is empty. Progress alone is no such reason.
        stale_s: see ``read_state``.
    """
    due = list(runs)
    if skip_synced:
        lost = _missing(runs, uri, experiment) if verify else set[Path]()
        due = [run for run in runs if run.path in lost or _is_unsynced(run, uri, experiment, stale_s=stale_s)]
    failures = _sync_each(due, uri, experiment, stale_s=stale_s) if due else {}
    if failures:
        logger.warning(
            "%s (%d of the runs wait in their run directories until the next sync)",
            [*failures.values()][-1],
            len(failures),
        )
    return SyncReport(mask_passwords(uri), len(due), failures)


def _is_unsynced(run: RunDirectory, uri: str, experiment: str, *, stale_s: float) -> bool:
    try:
        return bool(unsynced_reason(run, uri=uri, experiment=experiment, stale_s=stale_s))
    except (OSError, ValueError, KeyError):  # a damaged run directory, which the sync reports
        return True


def _sync_each(runs: Sequence[RunDirectory], uri: str, experiment: str, *, stale_s: float) -> dict[Path, str]:
    """Send runs one by one; return the reason of each that fails."""
    waiting = list(runs)
    failures: dict[Path, str] = {}
    try:
        store = open_store(uri, experiment)
        while waiting:
            try:
                with store.exclusively():
                    sync_run(waiting[0], store, stale_s=stale_s)
            except (TrackingError, ValueError, KeyError) as error:  # MLflow, or a damaged run directory
                failures[waiting[0].path] = str(error)
                store.check()
            waiting.pop(0)
    except (TrackingError, ValueError) as error:
        for run in waiting:
            failures.setdefault(run.path, str(error))
    return failures


def _missing(runs: Sequence[RunDirectory], uri: str, experiment: str) -> set[Path]:
    """Return the paths of the runs that MLflow does not have."""
    # It imports SQLAlchemy: the child process of a job and the launch start without it.
    from crisscross.tracking.query import RunColumns, study_runs

    of_runs = [set(run.about["studies"]) for run in runs]
    studies = sorted(set.intersection(*of_runs))[:1] or sorted(set.union(*of_runs)) if of_runs else []
    columns = RunColumns(tags=("crisscross.identity",))
    there: set[str | None] = set()
    try:
        for study in studies:
            found = study_runs(study, wanted=columns, uri=uri, experiment=experiment)
            there |= {run["tags"].get("crisscross.identity") for run in found}
    except TrackingError:  # no store, no experiment or no server: the sync creates it, or reports why not
        pass
    return {run.path for run in runs if run.identity not in there}


def sync_run(run: RunDirectory, store: Store, *, stale_s: float = STALE_SECONDS) -> int:
    """Send to an open store all that it lacks of a run.

    Args:
        run: the run directory.
        store: an open MLflow experiment, held ``exclusively``.
        stale_s: see ``read_state``.

    Returns:
        Number of metric points sent.

    Raises:
        FileNotFoundError: if the folder is no run directory.
        TimeoutError: if another process holds the run's sync lock for too long.
    """
    RunDirectory.open(run.path)
    with file_lock(run.path / ".tracking.lock", timeout_s=LOCK_TIMEOUT_S):
        state = SyncState(run, store.key)
        _ensure_run(run, store, state)
        sent = state.sent
        as_of = (run.path / "run.json").stat().st_mtime_ns
        if sent.finished_as == as_of:
            return 0
        # Read before the history: an end that comes after this line is sent the next time.
        status = read_state(run, stale_s=stale_s)
        finished = status.result is not None
        _send_params_and_tags(run, store, sent, status)
        points = _send_history(run, store, state, finished=finished) + _send_result(store, state, status)
        mlflow_status = metadata.STATUS_OF_STATE[status.state]
        if sent.status != mlflow_status:
            store.set_status(sent.run_id, mlflow_status, end_ms=status.ended_ms)
            sent.status = mlflow_status
        if status.is_over:
            _send_artifacts(run, store, sent, status)
        sent.finished_as = as_of if finished else 0
        state.save()
        return points


def _ensure_run(run: RunDirectory, store: Store, state: SyncState) -> None:
    """Find the run in MLflow, or create it.

    The sync state of a run that is gone is reset.
    """
    if state.sent.run_id and store.has_run(state.sent.run_id):
        return
    state.sent = Sent()
    state.save()  # the claim is on disk before a run can carry it
    # Created just before a kill, or through another address of the same store?
    found = store.find_run("crisscross.claim", state.claim)
    state.sent.run_id = found if found and store.has_run(found) else _create(run, store, state)
    state.save()


def _create(run: RunDirectory, store: Store, state: SyncState) -> str:
    of_run = _tags(run, run.config, read_state(run))
    not_empty = {key: text for key, text in of_run.items() if text}
    tags = {**metadata.environment(), "crisscross.claim": state.claim, **not_empty}
    parents = [parent for parent in run.parents if (parent.path / "run.json").is_file()]
    if parents:
        sync_run(parents[0], store)
        tags["mlflow.parentRunId"] = SyncState(parents[0], store.key).sent.run_id
    about = run.about
    tags.update(ui.run_tags(about["studies"]))  # only once: another may be chosen in the browser
    run_id = store.create_run(about["label"], start_ms=int(1000 * about["created"]), tags=tags)
    state.sent.tags = of_run
    return run_id


def _tags(run: RunDirectory, config: Mapping[str, Any], status: RunStatus) -> dict[str, str]:
    return {
        **metadata.tags(run, config),
        "crisscross.state": status.state.in_progress_json,
        "crisscross.progress": status.progress,
        "crisscross.error": status.error,
    }


def _send_params_and_tags(run: RunDirectory, store: Store, sent: Sent, status: RunStatus) -> None:
    """Send parameters and the dataset once, and the tags that changed."""
    config = run.config
    if not sent.has_parameters:
        store.log_parameters(sent.run_id, {**metadata.parent_params(run), **metadata.parameters(config)})
        store.log_dataset(sent.run_id, metadata.dataset(run.kind, config))
        sent.has_parameters = True
    wanted = _tags(run, config, status)
    store.set_tags(sent.run_id, {key: text for key, text in wanted.items() if sent.tags.get(key, "") != text})
    sent.tags = wanted
    studies = run.about["studies"].items()
    store.set_experiment_tags({f"study.{name}": str(entry.get("launched", 0)) for name, entry in studies})


def _send_history(run: RunDirectory, store: Store, state: SyncState, *, finished: bool) -> int:
    sent = state.sent
    if run.metrics_path.exists() and run.metrics_path.stat().st_size < sent.metrics_bytes:
        # The history was cut below the sent part, which an intact checkpoint rules out. The steps that MLflow has
        # stay: if they were sent again, with the times of their repetition, they would be there twice.
        sent.skip_to_step, sent.metrics_bytes = sent.last_step, 0
    num_points = 0
    end = committed_bytes(run, done=finished)
    for lines, offset in batches(run.metrics_path, start=sent.metrics_bytes, end=end):
        points = [point for line in lines if line["step"] > sent.skip_to_step for point in _points(line)]
        store.log_points(sent.run_id, points)
        num_points += len(points)
        sent.metric_names = sorted({*sent.metric_names, *(name for line in lines for name in line["metrics"])})
        sent.metrics_bytes, sent.last_step = offset, max(sent.last_step, lines[-1]["step"])
        state.save()
    return num_points


def _send_result(store: Store, state: SyncState, status: RunStatus) -> int:
    """Send the metrics of result.json that the history does not have."""
    if status.result is None:
        return 0
    metrics = status.result.get("metrics", {})
    fresh = {name: value for name, value in metrics.items() if name not in state.sent.metric_names}
    if not fresh:
        return 0
    time_ms = state.end_ms(status.ended_ms)
    points = _points({"step": status.result.get("steps", 0), "time_ms": time_ms, "metrics": fresh})
    store.log_points(state.sent.run_id, points)
    return len(points)


def _points(line: Mapping[str, Any]) -> list[Point]:
    return [(name, value, line["time_ms"], line["step"]) for name, value in line["metrics"].items()]


def _send_artifacts(run: RunDirectory, store: Store, sent: Sent, status: RunStatus) -> None:
    listed = (status.result or {}).get("artifacts", [])
    for name in ["config.yaml", "run.json", "environment.json", "code.diff", "log.txt", "result.json", *listed]:
        path = (run.path / name).resolve()
        if not path.is_file() or not path.is_relative_to(run.path):
            continue
        version = [path.stat().st_size, path.stat().st_mtime_ns]
        if sent.artifacts.get(name) == version:
            continue
        if name == "config.yaml":
            store.log_text(sent.run_id, mask_passwords(path.read_text(encoding="utf-8")), name)
        else:
            store.log_file(sent.run_id, path, name)
        sent.artifacts[name] = version


def set_latest_tag(study: str, fingerprint: str, *, uri: str, experiment: str) -> None:
    """Set the experiment tag ``study.<study>.latest``: the variant launched last.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses.
    """
    store = open_store(uri, experiment)
    with store.exclusively():
        store.set_experiment_tags({f"study.{study}.latest": fingerprint})


def unsynced_reason(run: RunDirectory, *, uri: str, experiment: str, stale_s: float = STALE_SECONDS) -> str:
    """Return what MLflow lacks of a run, in words; empty if nothing.

    It compares the run directory with ``tracking.json``, without MLflow. A SQLite file that was deleted has nothing.

    Raises:
        ValueError: if MLflow does not accept the URI, or if a file of the run is damaged.
    """
    sent = SyncState(run, store_key(uri, experiment)).sent
    status = read_state(run, stale_s=stale_s)
    file = sqlite_file(absolute(uri))
    if not sent.run_id or (file is not None and not has_content(file)):
        return "it is not in MLflow yet"
    missing = committed_bytes(run, done=status.result is not None) - sent.metrics_bytes
    if missing > 0:
        return f"{missing} bytes of its history are not in MLflow yet"
    if status.result is None:
        as_sent = (sent.status, sent.tags.get("crisscross.state"), sent.tags.get("crisscross.error"))
        is_sent = as_sent == (metadata.STATUS_OF_STATE[status.state], status.state.in_progress_json, status.error)
        return "" if is_sent else f"its state is not in MLflow yet: {status.state.in_progress_json}"
    if not sent.finished_as:
        return f"its state is not in MLflow yet: {status.state.in_progress_json}"
    is_sent = sent.finished_as == (run.path / "run.json").stat().st_mtime_ns
    return "" if is_sent else "its studies are not in MLflow yet"


def unsynced_runs(runs_root: Path, *, uri: str, experiment: str) -> list[RunDirectory]:
    """Return the run directories that a store does not have completely.

    Args:
        runs_root: folder of the run directories; it may be missing.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
    """
    unsynced = []
    for path in sorted(runs_root.glob("*/*/run.json")):
        run = RunDirectory(path.parent)
        if not unsynced_reason(run, uri=uri, experiment=experiment, stale_s=0.0):
            continue
        tracking = run.config["tracking"]  # read last: most runs are synced, and this takes longer than the rest
        is_here = store_key(tracking["uri"], tracking["experiment"]) == store_key(uri, experiment)
        if is_here and tracking["delivery"] != "off":
            unsynced.append(run)
    return unsynced
