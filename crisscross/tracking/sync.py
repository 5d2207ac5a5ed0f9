"""Bringing an open MLflow store up to date with a run directory. MLflow itself is behind the store (client.py).

Every step here may be cut off by a kill and done again: parameters, tags and points that are already there are
taken as what they are, because a point keeps the time at which it was written to the history.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import STALE_SECONDS, RunStatus, read_state
from crisscross.tracking import metadata, ui
from crisscross.tracking.client import (
    LOCK_TIMEOUT_S,
    Point,
    Store,
    TrackingError,
    absolute,
    has_content,
    sqlite_file,
    store_key,
)
from crisscross.tracking.query import RunColumns, study_runs
from crisscross.tracking.sync_state import Sent, SyncState, batches, durable_bytes
from crisscross.utils.files import file_lock
from crisscross.utils.redact import mask_passwords


@dataclass(frozen=True)
class Delivery:
    """What one delivery did.

    Attributes:
        run_id: the MLflow run.
        points_sent: metric points sent by this call.
        finished: whether MLflow now has everything of a finished experiment.
    """

    run_id: str
    points_sent: int
    finished: bool


def deliver_run(run: RunDirectory, store: Store, *, stale_s: float = STALE_SECONDS) -> Delivery:
    """Tell a store all that it does not know yet of a run.

    Args:
        run: the run directory.
        store: an open MLflow experiment.
        stale_s: see ``read_state``.

    Raises:
        FileNotFoundError: when the folder is no run directory.
        TimeoutError: when another delivery of this run does not come to an end.
    """
    RunDirectory.open(run.path)
    with file_lock(run.path / ".tracking.lock", timeout_s=LOCK_TIMEOUT_S):
        notes = SyncState(run, store.key)
        _ensure_run(run, store, notes)
        sent = notes.sent
        as_of = (run.path / "run.json").stat().st_mtime_ns
        if sent.finished_as == as_of:
            return Delivery(sent.run_id, 0, True)
        # Read before the history: an end that comes after this line is told the next time.
        standing = read_state(run, stale_s=stale_s)
        finished = standing.result is not None
        _send_words(run, store, sent, standing)
        points = _send_history(run, store, notes, finished=finished) + _send_result(store, notes, standing)
        status = metadata.mlflow_status(standing.state)
        if sent.status != status:
            store.set_status(sent.run_id, status, end_ms=standing.ended_ms)
            sent.status = status
        if standing.is_over:
            _send_artifacts(run, store, sent, standing)
        sent.finished_as = as_of if finished else 0
        notes.save()
        return Delivery(sent.run_id, points, finished)


def _ensure_run(run: RunDirectory, store: Store, notes: SyncState) -> None:
    """Find the run in MLflow, or make it; forget what had been sent to one that is gone."""
    if notes.sent.run_id and store.has_run(notes.sent.run_id):
        return
    notes.sent = Sent()
    notes.save()  # the claim is durable before a run can carry it
    # Made just before a kill, or through another address of the same store?
    found = store.find_run("crisscross.claim", notes.claim)
    notes.sent.run_id = found if found and store.has_run(found) else _create(run, store, notes)
    notes.save()


def _create(run: RunDirectory, store: Store, notes: SyncState) -> str:
    words = _words(run, run.config, read_state(run))
    told = {key: text for key, text in words.items() if text}
    tags = {**metadata.environment(), "crisscross.claim": notes.claim, **told}
    parents = [parent for parent in run.parents if (parent.path / "run.json").is_file()]
    if parents:
        tags["mlflow.parentRunId"] = deliver_run(parents[0], store).run_id
    about = run.about
    tags.update(ui.run_tags(about["studies"]))  # now and never again: another may be chosen in the browser
    run_id = store.create_run(about["label"], start_ms=int(1000 * about["created"]), tags=tags)
    notes.sent.tags = words
    return run_id


def _words(run: RunDirectory, config: Mapping[str, Any], standing: RunStatus) -> dict[str, str]:
    return {
        **metadata.tags(run, config),
        "crisscross.state": standing.state,
        "crisscross.progress": standing.progress,
        "crisscross.error": standing.error,
    }


def _send_words(run: RunDirectory, store: Store, sent: Sent, standing: RunStatus) -> None:
    """Send parameters and the dataset once, and the tags that changed."""
    config = run.config
    if not sent.has_parameters:
        store.log_parameters(sent.run_id, {**metadata.parent_params(run), **metadata.parameters(config)})
        store.log_dataset(sent.run_id, metadata.dataset(run.kind, config))
        sent.has_parameters = True
    wanted = _words(run, config, standing)
    store.set_tags(sent.run_id, {key: text for key, text in wanted.items() if sent.tags.get(key, "") != text})
    sent.tags = wanted
    studies = run.about["studies"].items()
    store.set_experiment_tags({f"study.{name}": str(entry.get("launched", 0)) for name, entry in studies})


def _send_history(run: RunDirectory, store: Store, notes: SyncState, *, finished: bool) -> int:
    sent = notes.sent
    if run.metrics_path.exists() and run.metrics_path.stat().st_size < sent.metrics_bytes:
        # The history was cut below what had been sent, which a sound checkpoint rules out. The steps that
        # MLflow has stay: sending them again with the times of their repetition would double them.
        sent.skip_to_step, sent.metrics_bytes = sent.last_step, 0
    num_points = 0
    end = durable_bytes(run, done=finished)
    for lines, offset in batches(run.metrics_path, start=sent.metrics_bytes, end=end):
        points = [point for line in lines if line["step"] > sent.skip_to_step for point in _points(line)]
        store.log_points(sent.run_id, points)
        num_points += len(points)
        sent.metric_names = sorted({*sent.metric_names, *(name for line in lines for name in line["metrics"])})
        sent.metrics_bytes, sent.last_step = offset, max(sent.last_step, lines[-1]["step"])
        notes.save()
    return num_points


def _send_result(store: Store, notes: SyncState, standing: RunStatus) -> int:
    """Send the metrics of result.json that the history does not have."""
    if standing.result is None:
        return 0
    metrics = standing.result.get("metrics", {})
    fresh = {name: value for name, value in metrics.items() if name not in notes.sent.metric_names}
    if not fresh:
        return 0
    time_ms = notes.end_ms(standing.ended_ms)
    points = _points({"step": standing.result.get("steps", 0), "time_ms": time_ms, "metrics": fresh})
    store.log_points(notes.sent.run_id, points)
    return len(points)


def _points(line: Mapping[str, Any]) -> list[Point]:
    return [(name, value, line["time_ms"], line["step"]) for name, value in line["metrics"].items()]


def _send_artifacts(run: RunDirectory, store: Store, sent: Sent, standing: RunStatus) -> None:
    listed = (standing.result or {}).get("artifacts", [])
    for name in ["config.yaml", "run.json", "environment.json", "code.diff", "log.txt", "result.json", *listed]:
        path = (run.path / name).resolve()
        if not path.is_file() or not path.is_relative_to(run.path):
            continue
        version = [path.stat().st_size, path.stat().st_mtime_ns]
        if sent.artifacts.get(name) == version:
            continue
        if name == "config.yaml":
            store.log_text(sent.run_id, mask_passwords(path.read_text()), name)
        else:
            store.log_file(sent.run_id, path, name)
        sent.artifacts[name] = version


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A run that could not be delivered, and why, in one line."""

    run: RunDirectory
    reason: str


def deliver(run: RunDirectory, *, uri: str, experiment: str) -> Delivery:
    """Bring MLflow up to date with a run directory. Again, or from two processes at once, is harmless.

    Args:
        run: the run directory.
        uri: MLflow's tracking URI: ``sqlite:///FILE``, ``http://HOST:PORT``, ...
        experiment: name of the MLflow experiment; made when it is not there.

    Raises:
        TrackingError: in one line, when MLflow cannot be reached or refuses.
        ValueError: when the URI is none that MLflow takes, or a file in the run directory is damaged.
    """
    return _deliver(Store(uri, experiment), run)


def deliver_all(
    runs: Iterable[RunDirectory], *, uri: str, experiment: str, stale_s: float = STALE_SECONDS
) -> list[Failure]:
    """Bring MLflow up to date with many run directories; go on where one fails.

    A server that cannot be reached is asked once, with one warning, and every run still open is a failure.

    Args:
        runs: run directories.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        stale_s: see ``read_state``.
    """
    waiting = list(runs)
    failures: list[Failure] = []
    try:
        store = Store(uri, experiment)
        while waiting:
            try:
                _deliver(store, waiting[0], stale_s=stale_s)
            except (TrackingError, ValueError, KeyError) as error:  # MLflow, or a damaged run directory
                failures.append(Failure(waiting[0], str(error)))
                store.check()
            waiting.pop(0)
    except (TrackingError, ValueError) as error:
        failed = {failure.run.path for failure in failures}
        failures += [Failure(run, str(error)) for run in waiting if run.path not in failed]
    if failures:
        logger.warning(
            "%s (%d of the runs wait in their run directories until the next delivery)",
            failures[-1].reason,
            len(failures),
        )
    return failures


def _deliver(store: Store, run: RunDirectory, *, stale_s: float = STALE_SECONDS) -> Delivery:
    with store.exclusively():
        return deliver_run(run, store, stale_s=stale_s)


def set_latest_tag(study: str, fingerprint: str, *, uri: str, experiment: str) -> None:
    """Note in MLflow which variant of a study was launched last: the experiment tag ``study.<study>.latest``.

    Raises:
        TrackingError: when MLflow cannot be reached or refuses.
    """
    store = Store(uri, experiment)
    with store.exclusively():
        store.set_experiment_tags({f"study.{study}.latest": fingerprint})


def pending(run: RunDirectory, *, uri: str, experiment: str, stale_s: float = STALE_SECONDS) -> str:
    """Return what of a run MLflow does not have yet, in words; empty when nothing. MLflow is not asked.

    Only a look is taken at whether a SQLite file is there at all: one that was deleted has nothing.
    """
    sent = SyncState(run, store_key(uri, experiment)).sent
    standing = read_state(run, stale_s=stale_s)
    file = sqlite_file(absolute(uri))
    if not sent.run_id or (file is not None and not has_content(file)):
        return "it is not in MLflow yet"
    missing = durable_bytes(run, done=standing.result is not None) - sent.metrics_bytes
    if missing > 0:
        return f"{missing} bytes of its history are not in MLflow yet"
    if standing.result is None:
        told = (sent.status, sent.tags.get("crisscross.state"), sent.tags.get("crisscross.error"))
        is_told = told == (metadata.mlflow_status(standing.state), standing.state, standing.error)
        return "" if is_told else f"MLflow does not know yet that it is {standing.state}"
    if not sent.finished_as:
        return f"MLflow does not know yet that it is {standing.state}"
    is_told = sent.finished_as == (run.path / "run.json").stat().st_mtime_ns
    return "" if is_told else "MLflow does not know yet of which studies it is part"


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


def refill(runs: Sequence[RunDirectory], *, study: str, tracking: Mapping[str, Any]) -> None:
    """Deliver what the store lacks of a study, whatever the run directories believe it to have.

    A store that was lost, or replaced by an older copy, is filled again.

    Args:
        runs: the study's run directories.
        study: ``<study>.<fingerprint>``.
        tracking: ``uri`` and ``experiment`` of the config.
    """
    place = {"uri": tracking["uri"], "experiment": tracking["experiment"]}
    try:
        wanted = RunColumns(tags=("crisscross.identity",))
        there = {run["tags"].get("crisscross.identity") for run in study_runs(study, wanted=wanted, **place)}
    except TrackingError:  # no store, no experiment, or nobody there: the delivery makes them, or says so
        there = set()
    missing = [run for run in runs if run.identity not in there]
    if missing:
        deliver_all(missing, **place, stale_s=0.0)
