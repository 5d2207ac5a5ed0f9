"""Addresses of MLflow stores: which are taken, where a SQLite file lies, whether a server listens."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crisscross.tracking import ui
from crisscross.tracking.metadata import Dataset
from crisscross.tracking.sync_state import POINTS_PER_BATCH
from crisscross.utils.files import file_lock
from crisscross.utils.redact import mask_passwords

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
CONNECT_TIMEOUT_S = 5.0  # chosen by us


class TrackingError(RuntimeError):
    """MLflow could not be reached or said no. Nothing is lost: the run directory has it all."""


def absolute(uri: str) -> str:
    """Return the URI with the path of a SQLite file made absolute.

    Raises:
        ValueError: for a URI that MLflow does not take.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES or ":" not in uri:
        raise ValueError(
            f"tracking.uri={mask_passwords(uri)} is no MLflow store: use sqlite:///FILE or http://HOST:PORT"
        )
    if scheme != "sqlite":
        return uri
    file = uri.partition(":///")[2]
    if not file:
        raise ValueError(f"tracking.uri={mask_passwords(uri)} names no file: use sqlite:///mlflow.db")
    return f"sqlite:///{Path(file).resolve()}"


def store_key(uri: str, experiment: str) -> str:
    """Return the name of a store and experiment in ``tracking.json``."""
    return f"{mask_passwords(absolute(uri))} {experiment}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an absolute SQLite URI, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def has_content(file: Path) -> bool:
    """Whether a file is there and not empty."""
    return file.is_file() and file.stat().st_size > 0


def folder_name(experiment: str) -> str:
    """Return an experiment's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", experiment).strip(".") or "experiment"


def check_port(uri: str) -> None:
    """Look whether something listens where an HTTP address points; MLflow itself would try for much longer.

    Raises:
        TrackingError: when nothing does.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return  # only the proxy knows
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise refusal(uri, error) from None


def refusal(uri: str, error: BaseException) -> TrackingError:
    """Return what MLflow, its database or the operating system said, as one line for people."""
    reason = mask_passwords((str(error) or type(error).__name__).splitlines()[0][:300])
    return TrackingError(f"MLflow at {mask_passwords(uri)}: {reason}")


LOCK_TIMEOUT_S = 120.0  # chosen by us; another delivery of the same run, or to the same SQLite file, takes less
Point = tuple[str, float, int, int]
"""Metric name, value, time in milliseconds since 1970, step."""

ITEMS_PER_CALL = 100  # MLflow's limit for parameters and for tags
RUNS_PER_CALL = 200  # by us: a server needs 5 ms a run whatever the page (tests/benchmark_reading.py), and has 20 s

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

logger = logging.getLogger(__name__)


class Store:
    """An open MLflow experiment."""

    def __init__(self, uri: str, experiment: str, *, read_only: bool = False) -> None:
        self.uri, self.experiment, self.key = absolute(uri), experiment, store_key(uri, experiment)
        self._file, self._read_only = sqlite_file(self.uri), read_only
        if read_only and self._file and not has_content(self._file):
            raise TrackingError(f"MLflow at {mask_passwords(uri)}: there is no such store")
        check_port(self.uri)
        with self.exclusively():
            client_class = import_client()
            if self._file and not has_content(self._file):
                make_tables(self._file)
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
            raise TrackingError(f"MLflow at {mask_passwords(self.uri)}: no experiment {self.experiment}")
        if found.lifecycle_stage == "deleted" and not self._read_only:
            logger.warning("the experiment %s had been deleted in MLflow: it is restored", self.experiment)
            self.client.restore_experiment(found.experiment_id)
        self.experiment_id, self.tags = found.experiment_id, dict(found.tags)
        if not self._read_only:
            wanted = ui.view_tags(self.experiment_id)
            # Only those that are not there: a text or view that was changed in the browser stays.
            self.set_experiment_tags({key: text for key, text in wanted.items() if key not in self.tags})

    def _create_experiment(self) -> Any:
        from mlflow.exceptions import MlflowException

        place = None  # the server's choice
        if self._file:  # beside the SQLite file, whatever folder the process happens to run in
            place = (self._file.parent / "mlruns" / folder_name(self.experiment)).as_uri()
        with contextlib.suppress(MlflowException):  # somebody else was faster
            self.client.create_experiment(self.experiment, artifact_location=place)
        return self.client.get_experiment_by_name(self.experiment)

    def set_experiment_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment."""
        for key, text in tags.items():
            if self.tags.get(key) != text:
                self.client.set_experiment_tag(self.experiment_id, key, text)
                self.tags[key] = text

    def create_run(self, name: str, *, start_ms: int, tags: Mapping[str, str]) -> str:
        """Make a run and return its id."""
        made = self.client.create_run(self.experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
        return made.info.run_id

    def has_run(self, run_id: str) -> bool:
        """Return whether a run is there; one that was deleted in the browser is restored."""
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
        """Return a run's tags."""
        return dict(self.client.get_run(run_id).data.tags)

    def find_run(self, tag: str, text: str) -> str | None:
        """Return the id of the run that carries a tag, if there is one."""
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
        """Set parameters."""
        from mlflow.entities import Param

        for some in _chunks([Param(key, text) for key, text in parameters.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, params=some)

    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        """Name a dataset among the inputs of a run; one that is named already is left alone."""
        from mlflow import entities

        entry = entities.Dataset(dataset.name, dataset.digest, "local", dataset.source)
        used_for = entities.InputTag("mlflow.data.context", dataset.context)
        self.client.log_inputs(run_id, datasets=[entities.DatasetInput(entry, tags=[used_for])])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        for some in _chunks([RunTag(key, text) for key, text in tags.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, tags=some)

    def log_points(self, run_id: str, points: list[Point]) -> None:
        """Add points to the history; those that it has are left alone."""
        from mlflow.entities import Metric

        for some in _chunks([Metric(*point) for point in points], POINTS_PER_BATCH):
            self.client.log_batch(run_id, metrics=some, synchronous=True)

    def set_status(self, run_id: str, status: str, *, end_ms: int | None) -> None:
        """Set the status, and the time of the end where it is one."""
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=end_ms)

    def log_file(self, run_id: str, path: Path, name: str) -> None:
        """Keep a file as the artifact of that name."""
        folder = Path(name).parent.as_posix()
        self.client.log_artifact(run_id, str(path), None if folder == "." else folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Keep a text as the artifact of that name."""
        self.client.log_text(run_id, text, name)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def import_client() -> type:
    """Import MLflow, 3 s of work, without its noise."""
    for key, text in QUIET.items():
        os.environ.setdefault(key, text)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


def make_tables(file: Path) -> None:
    """Create a SQLite store. MLflow does so by itself only once in the life of a process.

    It takes dozens of migrations; a process that is killed on the way leaves a part beside ``file``, and no store that
    nobody could open any more.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        SqlAlchemyStore(f"sqlite:///{part}", (file.parent / "mlruns").as_uri())  # type: ignore[no-untyped-call]
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


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


DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "crisscross"
