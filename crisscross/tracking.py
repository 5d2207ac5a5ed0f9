"""The record in MLflow: what is delivered to it, what is read from it.

Training writes to its run directory (journal.py) and never here. Delivery brings MLflow up to date from that
directory, as often as one likes, from any process: a line of the history is sent only once a durable
checkpoint covers it, and it keeps its own time, so that MLflow takes a repeated line for the one it has. Each
(metric, step) therefore stands once, whatever is killed and whenever. A server that is away costs a warning;
what it missed waits in the run directory.

What is sent, in which order, is in delivery.py; what has been sent, in delivery_notes.py; the process beside a job
that sends, in courier.py; the store itself, and with it MLflow, in mlflow_store.py; reading a database without MLflow,
in sql_reader.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross import record
from crisscross.courier import Courier
from crisscross.delivery import Delivery, deliver_run
from crisscross.delivery_notes import Notes, durable_bytes
from crisscross.mlflow_store import Store
from crisscross.outputs import are_kept, keep_outputs
from crisscross.run_directory import RunDirectory
from crisscross.sql_reader import Wanted, read_experiment, read_runs
from crisscross.store_address import (
    TrackingError,
    absolute,
    has_content,
    sqlite_file,
    store_key,
)

__all__ = [
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "Courier",
    "Delivery",
    "Failure",
    "TrackingError",
    "Wanted",
    "deliver",
    "deliver_all",
    "experiment_id_of",
    "experiment_tags",
    "log_outputs",
    "mark_latest",
    "pending",
    "search_runs",
    "study_runs",
]

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "crisscross"

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
    runs: Iterable[RunDirectory], *, uri: str, experiment: str, stale_s: float = record.STALE_SECONDS
) -> list[Failure]:
    """Bring MLflow up to date with many run directories; go on where one fails.

    A server that cannot be reached is asked once, with one warning, and every run still open is a failure.

    Args:
        runs: run directories.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        stale_s: see ``record.standing``.
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


def _deliver(store: Store, run: RunDirectory, *, stale_s: float = record.STALE_SECONDS) -> Delivery:
    with store.exclusively():
        return deliver_run(run, store, stale_s=stale_s)


def mark_latest(study: str, fingerprint: str, *, uri: str, experiment: str) -> None:
    """Note in MLflow which variant of a study was launched last: the experiment tag ``study.<study>.latest``.

    Raises:
        TrackingError: when MLflow cannot be reached or refuses.
    """
    store = Store(uri, experiment)
    with store.exclusively():
        store.set_experiment_tags({f"study.{study}.latest": fingerprint})


def pending(run: RunDirectory, *, uri: str, experiment: str, stale_s: float = record.STALE_SECONDS) -> str:
    """Return what of a run MLflow does not have yet, in words; empty when nothing. MLflow is not asked.

    Only a look is taken at whether a SQLite file is there at all: one that was deleted has nothing.
    """
    sent = Notes(run, store_key(uri, experiment)).sent
    standing = record.standing(run, stale_s=stale_s)
    file = sqlite_file(absolute(uri))
    if not sent.run_id or (file is not None and not has_content(file)):
        return "it is not in MLflow yet"
    missing = durable_bytes(run, done=standing.result is not None) - sent.metrics_bytes
    if missing > 0:
        return f"{missing} bytes of its history are not in MLflow yet"
    if standing.result is None:
        told = (sent.status, sent.tags.get("crisscross.state"), sent.tags.get("crisscross.error"))
        is_told = told == (standing.status, standing.state, standing.error)
        return "" if is_told else f"MLflow does not know yet that it is {standing.state}"
    if not sent.finished_as:
        return f"MLflow does not know yet that it is {standing.state}"
    is_told = sent.finished_as == (run.path / "run.json").stat().st_mtime_ns
    return "" if is_told else "MLflow does not know yet of which studies it is part"


def search_runs(filter_string: str, *, uri: str, experiment: str) -> list[dict[str, Any]]:
    """Return the runs that match a filter such as ``tags.kind = 'pretrain'``, oldest first. Only reads.

    Returns:
        Dicts with ``run_id``, ``experiment_id``, ``status``, ``start_time_ms``, ``params``, ``metrics`` (last values),
        ``tags``.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    runs = [
        {
            "run_id": run.info.run_id,
            "experiment_id": run.info.experiment_id,
            "status": run.info.status,
            "start_time_ms": run.info.start_time,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
        }
        for run in Store(uri, experiment, read_only=True).search(filter_string)
    ]
    return _oldest_first(runs)


def study_runs(study: str, *, wanted: Wanted, uri: str, experiment: str) -> list[dict[str, Any]]:
    """Return the runs of ``<study>.<fingerprint>`` with what is wanted of them, oldest first. Only reads.

    A database is asked in SQL, without MLflow; a server, or what SQL cannot answer, by MLflow's client.

    Args:
        study: the tag ``study.<study>.<fingerprint>`` of its runs holds their point on its axes.
        wanted: tags, parameters and metrics.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        Dicts as of ``search_runs``.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    found = read_runs(uri, experiment, having=f"study.{study}", wanted=wanted)
    if found is not None:
        return _oldest_first(found)
    return [wanted.of(run) for run in search_runs(f"tags.`study.{study}` LIKE '%'", uri=uri, experiment=experiment)]


def _oldest_first(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(runs, key=lambda run: (run["start_time_ms"], run["run_id"]))


def experiment_tags(*, uri: str, experiment: str) -> dict[str, str]:
    """Return the tags of an MLflow experiment. Nothing is written.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    found = read_experiment(uri, experiment) or Store(uri, experiment, read_only=True)
    return found.tags


def experiment_id_of(*, uri: str, experiment: str) -> str:
    """Return MLflow's number of an experiment. Nothing is written.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    found = read_experiment(uri, experiment) or Store(uri, experiment, read_only=True)
    return found.experiment_id


def log_outputs(
    files: Mapping[str, Path], *, kind: str, of: str, description: str, uri: str, experiment: str
) -> tuple[str, ...]:
    """Keep files that were made of a study as artifacts, once for each content; see ``crisscross.outputs``.

    Args:
        files: by artifact name, such as ``figures/relaxation-1a2b3c4d.png``.
        kind: what they are, ``figures``: the kind of the MLflow run that has them.
        of: ``<study>.<fingerprint>``; it has one such run.
        description: the text on top of that run's page.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        The artifact names that were new.

    Raises:
        TrackingError: when MLflow cannot be reached or refuses.
    """
    if are_kept(files, kind=kind, of=of, uri=uri, experiment=experiment):
        return ()
    store = Store(uri, experiment)
    with store.exclusively():
        return keep_outputs(store, files, kind=kind, of=of, description=description)
