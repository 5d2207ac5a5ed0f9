"""The record in MLflow. The only file that imports it, and only when something is delivered or read.

Training writes to its run directory (journal.py) and never here. Delivery brings MLflow up to date from that
directory, as often as one likes, from any process: a line of the history is sent only once a durable
checkpoint covers it, and it keeps its own time, so that MLflow takes a repeated line for the one it has. Each
(metric, step) therefore stands once, whatever is killed and whenever. A server that is away costs a warning;
what it missed waits in the run directory.

What is sent, in which order, is in delivery.py; what has been sent, in delivery_notes.py; the process beside a job
that sends, in courier.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross import record
from crisscross.courier import Courier
from crisscross.delivery import LOCK_TIMEOUT_S, Delivery, Point, deliver_run
from crisscross.delivery_notes import POINTS_PER_BATCH, Notes, durable_bytes
from crisscross.locks import file_lock
from crisscross.outputs import keep_outputs
from crisscross.run_directory import RunDirectory
from crisscross.store_address import (
    TrackingError,
    absolute,
    check_port,
    folder_name,
    has_content,
    refusal,
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
    "deliver",
    "deliver_all",
    "experiment_id_of",
    "experiment_tags",
    "log_outputs",
    "mark_latest",
    "pending",
    "search_runs",
]

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "crisscross"

ITEMS_PER_CALL = 100  # MLflow's limit for parameters and for tags
RUNS_PER_CALL = 1000  # chosen by us
QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Our own retry is the next delivery. MLflow's defaults would hold one call for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # No connection outlives a call: a SQLite file deleted and made anew is then seen as what it is.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "eval/top1_av",
    "mlflow.note.content": (
        "CrissCross: self-supervised audio-visual learning with relaxed cross-modal synchronicity.\n\n"
        "Pretrainings (`tags.kind = 'pretrain'`) and, below each, the evaluations of its frozen backbones. "
        "Group by the tag `relaxation` to average over seeds. Table 3 has one row for each relaxation.\n\n"
        "    uv run launch/sweep_relaxation.py     run the study of Table 3, or what is missing of it\n"
        "    uv run analysis/make_tables.py        print the tables from these runs"
    ),
}
"""Set where the experiment has no such tag yet, so that a text changed in the browser stays."""

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
    return _Store(uri, experiment).deliver(run)


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
        store = _Store(uri, experiment)
        while waiting:
            try:
                store.deliver(waiting[0], stale_s=stale_s)
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


def mark_latest(study: str, fingerprint: str, *, uri: str, experiment: str) -> None:
    """Note in MLflow which variant of a study was launched last: the experiment tag ``study.<study>.latest``.

    Raises:
        TrackingError: when MLflow cannot be reached or refuses.
    """
    store = _Store(uri, experiment)
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


def of_study(name: str) -> str:
    """Return the filter that finds the runs of ``<study>.<fingerprint>``; the tag holds their point on its axes."""
    return f"tags.`study.{name}` LIKE '%'"


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
        for run in _Store(uri, experiment, read_only=True).search(filter_string)
    ]
    return sorted(runs, key=lambda run: (run["start_time_ms"], run["run_id"]))


def experiment_tags(*, uri: str, experiment: str) -> dict[str, str]:
    """Return the tags of an MLflow experiment. Nothing is written.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    return _Store(uri, experiment, read_only=True).tags


def experiment_id_of(*, uri: str, experiment: str) -> str:
    """Return MLflow's number of an experiment. Nothing is written.

    Raises:
        TrackingError: when there is no such store or experiment, or it cannot be reached.
    """
    return _Store(uri, experiment, read_only=True).experiment_id


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
    store = _Store(uri, experiment)
    with store.exclusively():
        return keep_outputs(store, files, kind=kind, of=of, description=description)


class _Store:
    """An open MLflow experiment."""

    def __init__(self, uri: str, experiment: str, *, read_only: bool = False) -> None:
        self.uri, self.experiment, self.key = absolute(uri), experiment, store_key(uri, experiment)
        self._file, self._read_only = sqlite_file(self.uri), read_only
        if read_only and self._file and not has_content(self._file):
            raise TrackingError(f"MLflow at {record.mask_passwords(uri)}: there is no such store")
        check_port(self.uri)
        with self.exclusively():
            client_class = _import_client()
            if self._file and not has_content(self._file):
                _make_tables(self.uri, self._file)
            self.client = client_class(tracking_uri=self.uri)
            self._open_experiment()

    def check(self) -> None:
        """Raise TrackingError when MLflow cannot be reached."""
        check_port(self.uri)
        with _as_tracking_error(self.uri):
            self.client.get_experiment(self.experiment_id)

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Be the only one who writes to a SQLite file: its migrations race, its writers block."""
        with _as_tracking_error(self.uri), contextlib.ExitStack() as stack:
            if self._file and not (self._read_only and not os.access(self._file.parent, os.W_OK)):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(f"{self._file}.lock", timeout_s=LOCK_TIMEOUT_S))
            yield

    def _open_experiment(self) -> None:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None and not self._read_only:
            found = self._create_experiment()
        if found is None:
            raise TrackingError(f"MLflow at {record.mask_passwords(self.uri)}: no experiment {self.experiment}")
        if found.lifecycle_stage == "deleted" and not self._read_only:
            logger.warning("the experiment %s had been deleted in MLflow: it is restored", self.experiment)
            self.client.restore_experiment(found.experiment_id)
        self.experiment_id, self.tags = found.experiment_id, dict(found.tags)
        if not self._read_only:
            self.set_experiment_tags({key: text for key, text in EXPERIMENT_TAGS.items() if key not in self.tags})

    def _create_experiment(self) -> Any:
        from mlflow.exceptions import MlflowException

        place = None  # the server's choice
        if self._file:  # beside the SQLite file, whatever folder the process happens to run in
            place = (self._file.parent / "mlruns" / folder_name(self.experiment)).as_uri()
        with contextlib.suppress(MlflowException):  # somebody else was faster
            self.client.create_experiment(self.experiment, artifact_location=place)
        return self.client.get_experiment_by_name(self.experiment)

    def set_experiment_tags(self, tags: Mapping[str, str]) -> None:
        for key, text in tags.items():
            if self.tags.get(key) != text:
                self.client.set_experiment_tag(self.experiment_id, key, text)
                self.tags[key] = text

    def deliver(self, run: RunDirectory, *, stale_s: float = record.STALE_SECONDS) -> Delivery:
        """Bring MLflow up to date with a run directory."""
        with self.exclusively():
            return deliver_run(run, self, stale_s=stale_s)

    def create_run(self, name: str, *, start_ms: int, tags: Mapping[str, str]) -> str:
        made = self.client.create_run(self.experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
        return made.info.run_id

    def has_run(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if found.info.lifecycle_stage == "deleted":
            self.client.restore_run(run_id)
        return True

    def tags_of(self, run_id: str) -> dict[str, str]:
        return dict(self.client.get_run(run_id).data.tags)

    def find_run(self, tag: str, text: str) -> str | None:
        from mlflow.entities import ViewType

        found = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{text}'", ViewType.ALL)
        return found[0].info.run_id if found else None

    def search(self, filter_string: str) -> list[Any]:
        """Return MLflow's runs that match a filter, all pages of them."""
        found: list[Any] = []
        token: str | None = None
        with _as_tracking_error(self.uri):
            while token != "":
                page = self.client.search_runs(
                    [self.experiment_id], filter_string, max_results=RUNS_PER_CALL, page_token=token
                )
                found += page
                token = page.token or ""
        return found

    def log_parameters(self, run_id: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for some in _chunks([Param(key, text) for key, text in parameters.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, params=some)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for some in _chunks([RunTag(key, text) for key, text in tags.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, tags=some)

    def log_points(self, run_id: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        for some in _chunks([Metric(*point) for point in points], POINTS_PER_BATCH):
            self.client.log_batch(run_id, metrics=some, synchronous=True)

    def set_status(self, run_id: str, status: str, *, end_ms: int | None) -> None:
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=end_ms)

    def log_file(self, run_id: str, path: Path, name: str) -> None:
        folder = Path(name).parent.as_posix()
        self.client.log_artifact(run_id, str(path), None if folder == "." else folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.client.log_text(run_id, text, name)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _import_client() -> type:
    """Import MLflow, 3 s of work, without its noise."""
    for key, text in QUIET.items():
        os.environ.setdefault(key, text)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


def _make_tables(uri: str, file: Path) -> None:
    """Create the tables of a SQLite store. MLflow does so by itself only once in the life of a process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    SqlAlchemyStore(uri, (file.parent / "mlruns").as_uri())


def _foreign_errors() -> tuple[type[BaseException], ...]:
    """Return what MLflow, its database and the operating system (network, disk, locks) raise."""
    if "mlflow" not in sys.modules:
        return (OSError,)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (OSError, MlflowException, SQLAlchemyError)


@contextlib.contextmanager
def _as_tracking_error(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line for people."""
    try:
        yield
    except _foreign_errors() as error:
        raise refusal(uri, error) from error
