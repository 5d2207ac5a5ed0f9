"""Read runs from an MLflow database in SQL: only the wanted columns, one query a table, read-only.

MLflow's own search joins the tags once a condition and loads every parameter, metric and tag of every run as objects,
and its import takes seconds. MLflow's client takes over if the SQL cannot work: tables of another MLflow, a driver
that is not installed, a server in front of the database. A function here then returns None; it raises no error.
The tables are those of mlflow/store/tracking/dbmodels/models.py of MLflow 3.17.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    NullPool,
    TableClause,
    column,
    create_engine,
    select,
    table,
    text,
)
from sqlalchemy.exc import SQLAlchemyError

from crisscross.tracking.address import (
    LOCK_TIMEOUT_S,
    absolute,
    has_content,
    refusal,
    sqlite_file,
)
from crisscross.tracking.store import open_store
from crisscross.utils.files import file_lock


def search_runs(filter_string: str, *, uri: str, experiment: str) -> list[dict[str, Any]]:
    """Return the runs that match a filter, oldest first; read-only.

    Args:
        filter_string: MLflow's filter, such as ``tags.kind = 'pretrain'``.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        Dicts with ``run_id``, ``experiment_id``, ``status``, ``start_time_ms``, ``params``, ``metrics`` (last values),
        ``tags``.

    Raises:
        TrackingError: if there is no such store or experiment, or it cannot be reached.
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
        for run in open_store(uri, experiment, read_only=True).search(filter_string)
    ]
    return _oldest_first(runs)


def study_runs(study: str, *, wanted: RunColumns, uri: str, experiment: str) -> list[dict[str, Any]]:
    """Return the wanted columns of a study's runs, oldest first; read-only.

    A database is read in SQL, without MLflow; a server through MLflow's client.

    Args:
        study: ``<study>.<fingerprint>``. Its runs have a tag ``study.<study>.<fingerprint>``.
        wanted: tags, parameters and metrics.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        Dicts as of ``search_runs``.

    Raises:
        TrackingError: if there is no such store or experiment, or it cannot be reached.
    """
    found = read_runs(uri, experiment, having=f"study.{study}", wanted=wanted)
    if found is not None:
        return _oldest_first(found)
    return [wanted.of(run) for run in search_runs(f"tags.`study.{study}` LIKE '%'", uri=uri, experiment=experiment)]


def _oldest_first(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(runs, key=lambda run: (run["start_time_ms"], run["run_id"]))


Answer = TypeVar("Answer")

COLUMNS = {
    "runs": ("run_uuid", "experiment_id", "status", "start_time", "lifecycle_stage"),
    "tags": ("run_uuid", "key", "value"),
    "params": ("run_uuid", "key", "value"),
    "latest_metrics": ("run_uuid", "key", "value", "is_nan"),
    "experiment_tags": ("experiment_id", "key", "value"),
}
"""Columns that are read, by table; of ``experiments`` all."""

MAPPED_BYTES = 2**30  # ours: a file that is not cached yet is read in half the time
ROWS_AT_A_TIME = 200  # ours
WORKSPACE = "default"
"""MLflow 3's workspace of a store that has no workspaces."""


@dataclass(frozen=True)
class RunColumns:
    """Tags, parameters and metrics to read of a run.

    Attributes:
        tags: their names.
        params: names of parameters.
        metrics: prefix of the names of metrics; None = no metrics.
    """

    tags: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    metrics: str | None = None

    def of(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run with only these columns."""
        begin = self.metrics
        return {
            **run,
            "tags": {key: run["tags"][key] for key in self.tags if key in run["tags"]},
            "params": {key: run["params"][key] for key in self.params if key in run["params"]},
            "metrics": {
                key: value for key, value in run["metrics"].items() if begin is not None and key.startswith(begin)
            },
        }


@dataclass(frozen=True)
class ExperimentRecord:
    """An MLflow experiment: its id and its tags."""

    experiment_id: str
    tags: dict[str, str] = field(default_factory=dict)


def read_experiment(uri: str, experiment: str) -> ExperimentRecord | None:
    """Return an experiment, or None if MLflow's client is needed.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Raises:
        TrackingError: if another process holds the lock of the SQLite file for too long.
    """
    return _read(uri, lambda connection: _experiment(connection, experiment))


def read_runs(uri: str, experiment: str, *, having: str, wanted: RunColumns) -> list[dict[str, Any]] | None:
    """Return the runs that have a tag.

    None means that MLflow's client is needed.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        having: name of the tag.
        wanted: columns of each run.

    Returns:
        Dicts as of ``search_runs``, in no order, without deleted runs.

    Raises:
        TrackingError: if another process holds the lock of the SQLite file for too long.
    """

    def answer(connection: Connection) -> list[dict[str, Any]] | None:
        found = _experiment(connection, experiment)
        return None if found is None else _runs(connection, found.experiment_id, having=having, wanted=wanted)

    return _read(uri, answer)


def _read(uri: str, question: Callable[[Connection], Answer | None]) -> Answer | None:
    """Run queries on a database; return None if it cannot be read."""
    uri = absolute(uri)
    file = sqlite_file(uri)
    if uri.startswith(("http", "databricks")) or (file is not None and not has_content(file)):
        return None
    try:
        with _lock_syncs(file), _engine(uri).connect() as connection:
            if file is not None:
                connection.exec_driver_sql(f"PRAGMA mmap_size={MAPPED_BYTES}")
                connection.exec_driver_sql("BEGIN")  # one snapshot for all queries; other databases: one each
            return question(connection)
    except (
        SQLAlchemyError,
        ImportError,
    ):  # another schema, a file in use, no driver: MLflow's client reads it, or raises
        return None
    except OSError as error:
        raise refusal(uri, error) from error


def _lock_syncs(file: Path | None) -> AbstractContextManager[object]:
    """Lock a SQLite file against syncs.

    During a sync, a run in the store may be incomplete.
    """
    lock = file and file.with_name(f"{file.name}.lock")
    if lock is None or not os.access(lock, os.W_OK):  # no sync writes to it here
        return nullcontext()
    return file_lock(lock, timeout_s=LOCK_TIMEOUT_S)


def _engine(uri: str) -> Engine:
    file = sqlite_file(uri)
    if file is None:
        return create_engine(uri, poolclass=NullPool)
    address = f"{file.as_uri()}?mode=ro"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True), poolclass=NullPool)


def _table(name: str) -> TableClause:
    return table(name, *map(column, COLUMNS[name]))


def _experiment(connection: Connection, name: str) -> ExperimentRecord | None:
    experiments, tags = table("experiments"), _table("experiment_tags")
    query = select(text("*")).select_from(experiments).where(column("name") == name)
    found = [row for row in connection.execute(query).mappings() if row.get("workspace", WORKSPACE) == WORKSPACE]
    if len(found) != 1:
        return None
    (number,) = (row["experiment_id"] for row in found)
    query = select(tags.c.key, tags.c.value).where(tags.c.experiment_id == number)
    return ExperimentRecord(str(number), {row.key: row.value for row in connection.execute(query)})


def _runs(connection: Connection, experiment_id: str, *, having: str, wanted: RunColumns) -> list[dict[str, Any]]:
    runs, tags, params, metrics = map(_table, ("runs", "tags", "params", "latest_metrics"))
    ours = _table("tags").alias("ours")  # a join: SQLite takes twice as long for `run_uuid IN (SELECT ...)`
    is_ours = (ours.c.key == having) & ours.c.value.is_not(None)

    def rows(of: TableClause, is_wanted: ColumnElement[bool]) -> Iterator[Sequence[Any]]:
        query = select(*of.c).join_from(ours, of, of.c.run_uuid == ours.c.run_uuid)
        found = connection.execute(query.where(is_ours, is_wanted))
        # One by one, each row costs a call; all at once, Python's garbage collector scans them again and again.
        return chain.from_iterable(found.partitions(ROWS_AT_A_TIME))

    is_there = (runs.c.experiment_id == int(experiment_id)) & (runs.c.lifecycle_stage == "active")
    found = {row[0]: _empty(*row) for row in rows(runs, is_there)}
    for place, clause, names in (("tags", tags, wanted.tags), ("params", params, wanted.params)):
        for run_id, key, value in rows(clause, clause.c.key.in_(names)) if names else ():
            if run_id in found:  # else it was deleted
                found[run_id][place][key] = value
    if wanted.metrics is not None:
        for run_id, key, value, is_nan in rows(metrics, metrics.c.key.startswith(wanted.metrics, autoescape=True)):
            if run_id in found and key.startswith(wanted.metrics):  # a database may ignore case
                found[run_id]["metrics"][key] = float("nan") if is_nan else value
    return [*found.values()]


def _empty(run_id: str, experiment_id: int, status: str, start_ms: int, _: str) -> dict[str, Any]:
    known = {"run_id": run_id, "experiment_id": str(experiment_id), "status": status, "start_time_ms": start_ms}
    return {**known, "params": {}, "metrics": {}, "tags": {}}


def experiment_tags(*, uri: str, experiment: str) -> dict[str, str]:
    """Return the tags of an MLflow experiment; read-only.

    Raises:
        TrackingError: if there is no such store or experiment, or it cannot be reached.
    """
    found = read_experiment(uri, experiment) or open_store(uri, experiment, read_only=True)
    return found.tags


def experiment_id_of(*, uri: str, experiment: str) -> str:
    """Return MLflow's id of an experiment; read-only.

    Raises:
        TrackingError: if there is no such store or experiment, or it cannot be reached.
    """
    found = read_experiment(uri, experiment) or open_store(uri, experiment, read_only=True)
    return found.experiment_id
