"""Bringing an open MLflow store up to date with a run directory. MLflow itself is behind the store (mlflow_store.py).

Every step here may be cut off by a kill and done again: parameters, tags and points that are already there are
taken as what they are, because a point keeps the time at which it was written to the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crisscross import mlflow_views, record, record_clips
from crisscross.delivery_notes import Notes, Sent, batches, durable_bytes
from crisscross.locks import file_lock
from crisscross.mlflow_store import LOCK_TIMEOUT_S, Point, Store
from crisscross.run_directory import RunDirectory


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


def deliver_run(run: RunDirectory, store: Store, *, stale_s: float = record.STALE_SECONDS) -> Delivery:
    """Tell a store all that it does not know yet of a run.

    Args:
        run: the run directory.
        store: an open MLflow experiment.
        stale_s: see ``record.standing``.

    Raises:
        FileNotFoundError: when the folder is no run directory.
        TimeoutError: when another delivery of this run does not come to an end.
    """
    RunDirectory.open(run.path)
    with file_lock(run.path / ".tracking.lock", timeout_s=LOCK_TIMEOUT_S):
        notes = Notes(run, store.key)
        _ensure_run(run, store, notes)
        sent = notes.sent
        as_of = (run.path / "run.json").stat().st_mtime_ns
        if sent.finished_as == as_of:
            return Delivery(sent.run_id, 0, True)
        # Read before the history: an end that comes after this line is told the next time.
        standing = record.standing(run, stale_s=stale_s)
        finished = standing.result is not None
        _send_words(run, store, sent, standing)
        points = _send_history(run, store, notes, finished=finished) + _send_result(store, notes, standing)
        if sent.status != standing.status:
            store.set_status(sent.run_id, standing.status, end_ms=standing.ended_ms)
            sent.status = standing.status
        if standing.is_over:
            _send_artifacts(run, store, sent, standing)
        sent.finished_as = as_of if finished else 0
        notes.save()
        return Delivery(sent.run_id, points, finished)


def _ensure_run(run: RunDirectory, store: Store, notes: Notes) -> None:
    """Find the run in MLflow, or make it; forget what had been sent to one that is gone."""
    if notes.sent.run_id and store.has_run(notes.sent.run_id):
        return
    notes.sent = Sent()
    notes.save()  # the claim is durable before a run can carry it
    # Made just before a kill, or through another address of the same store?
    found = store.find_run("crisscross.claim", notes.claim)
    notes.sent.run_id = found if found and store.has_run(found) else _create(run, store, notes)
    notes.save()


def _create(run: RunDirectory, store: Store, notes: Notes) -> str:
    words = _words(run, run.config, record.standing(run))
    told = {key: text for key, text in words.items() if text}
    tags = {**record.environment(), "crisscross.claim": notes.claim, **told}
    parents = [parent for parent in run.parents if (parent.path / "run.json").is_file()]
    if parents:
        tags["mlflow.parentRunId"] = deliver_run(parents[0], store).run_id
    about = run.about
    tags.update(mlflow_views.run_tags(about["studies"]))  # now and never again: another may be chosen in the browser
    run_id = store.create_run(about["label"], start_ms=int(1000 * about["created"]), tags=tags)
    notes.sent.tags = words
    return run_id


def _words(run: RunDirectory, config: Mapping[str, Any], standing: record.Standing) -> dict[str, str]:
    return {
        **record.tags(run, config),
        "crisscross.state": standing.state,
        "crisscross.progress": standing.progress,
        "crisscross.error": standing.error,
    }


def _send_words(run: RunDirectory, store: Store, sent: Sent, standing: record.Standing) -> None:
    """Send parameters and the dataset once, and the tags that changed."""
    config = run.config
    if not sent.has_parameters:
        store.log_parameters(sent.run_id, {**record.learnt_parameters(run), **record.parameters(config)})
        store.log_dataset(sent.run_id, record_clips.dataset(run.kind, config))
        sent.has_parameters = True
    wanted = _words(run, config, standing)
    store.set_tags(sent.run_id, {key: text for key, text in wanted.items() if sent.tags.get(key, "") != text})
    sent.tags = wanted
    studies = run.about["studies"].items()
    store.set_experiment_tags({f"study.{name}": str(entry.get("launched", 0)) for name, entry in studies})


def _send_history(run: RunDirectory, store: Store, notes: Notes, *, finished: bool) -> int:
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


def _send_result(store: Store, notes: Notes, standing: record.Standing) -> int:
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


def _send_artifacts(run: RunDirectory, store: Store, sent: Sent, standing: record.Standing) -> None:
    listed = (standing.result or {}).get("artifacts", [])
    for name in ["config.yaml", "run.json", "environment.json", "code.diff", "log.txt", "result.json", *listed]:
        path = (run.path / name).resolve()
        if not path.is_file() or not path.is_relative_to(run.path):
            continue
        version = [path.stat().st_size, path.stat().st_mtime_ns]
        if sent.artifacts.get(name) == version:
            continue
        if name == "config.yaml":
            store.log_text(sent.run_id, record.mask_passwords(path.read_text()), name)
        else:
            store.log_file(sent.run_id, path, name)
        sent.artifacts[name] = version
