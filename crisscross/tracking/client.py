"""An open MLflow experiment. The import of this module imports MLflow: ``store.open_store`` opens one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from crisscross.tracking import ui
from crisscross.tracking.address import (
    LOCK_TIMEOUT_S,
    TrackingError,
    absolute,
    check_port,
    has_content,
    refusal,
    sqlite_file,
    store_key,
)
from crisscross.tracking.metadata import Dataset
from crisscross.tracking.sync_state import POINTS_PER_BATCH, Point
from crisscross.utils.files import file_lock
from crisscross.utils.redact import mask_passwords

ITEMS_PER_CALL = 100  # MLflow's limit for parameters and for tags
RUNS_PER_CALL = 200  # ours: a server needs 5 ms a run whatever the page (tests/benchmark_reading.py), and has 20 s
# What MLflow raises, its database, and the operating system (network, disk, locks).
FOREIGN_ERRORS = (OSError, MlflowException, SQLAlchemyError)

logger = logging.getLogger(__name__)
for _noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)


class Store:
    """An open MLflow experiment."""

    def __init__(self, uri: str, experiment: str, *, read_only: bool = False) -> None:
        self.uri, self.experiment, self.key = absolute(uri), experiment, store_key(uri, experiment)
        self._file, self._read_only = sqlite_file(self.uri), read_only
        with self.exclusively():
            if self._file and not has_content(self._file):
                create_tables(self._file)
            self.client = MlflowClient(tracking_uri=self.uri)
            self._open_experiment()

    def check(self) -> None:
        """Raise TrackingError if MLflow cannot be reached."""
        check_port(self.uri)
        with _as_tracking_error(self.uri):
            self.client.get_experiment(self.experiment_id)

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Lock a SQLite file: its migrations race, and its writers block."""
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
            logger.warning("the experiment %s was deleted in MLflow: it is restored", self.experiment)
            self.client.restore_experiment(found.experiment_id)
        self.experiment_id, self.tags = found.experiment_id, dict(found.tags)
        if not self._read_only:
            wanted = ui.view_tags(self.experiment_id)
            # Only missing ones: a text or view that was changed in the browser stays.
            self.set_experiment_tags({key: text for key, text in wanted.items() if key not in self.tags})

    def _create_experiment(self) -> Any:
        place = None  # the server's choice
        if self._file:  # in the folder of the SQLite file, not of the process
            place = (self._file.parent / "mlruns" / _folder_name(self.experiment)).as_uri()
        with contextlib.suppress(MlflowException):  # another process was faster
            self.client.create_experiment(self.experiment, artifact_location=place)
        return self.client.get_experiment_by_name(self.experiment)

    def set_experiment_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment."""
        for key, text in tags.items():
            if self.tags.get(key) != text:
                self.client.set_experiment_tag(self.experiment_id, key, text)
                self.tags[key] = text

    def create_run(self, name: str, *, start_ms: int, tags: Mapping[str, str]) -> str:
        """Create a run and return its id."""
        made = self.client.create_run(self.experiment_id, start_time=start_ms, tags=dict(tags), run_name=name)
        return made.info.run_id

    def has_run(self, run_id: str) -> bool:
        """Return whether a run exists; restore it if it was deleted."""
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
        """Return the id of the run with a tag, if any."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{text}'", entities.ViewType.ALL)
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
        for some in _chunks([entities.Param(key, text) for key, text in parameters.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, params=some)

    def log_dataset(self, run_id: str, dataset: Dataset) -> None:
        """Log a dataset as an input of a run, once."""
        entry = entities.Dataset(dataset.name, dataset.digest, "local", dataset.source)
        used_for = entities.InputTag("mlflow.data.context", dataset.context)
        self.client.log_inputs(run_id, datasets=[entities.DatasetInput(entry, tags=[used_for])])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for some in _chunks([entities.RunTag(key, text) for key, text in tags.items()], ITEMS_PER_CALL):
            self.client.log_batch(run_id, tags=some)

    def log_points(self, run_id: str, points: list[Point]) -> None:
        """Log metric points; MLflow skips those that it has."""
        for some in _chunks([entities.Metric(*point) for point in points], POINTS_PER_BATCH):
            self.client.log_batch(run_id, metrics=some, synchronous=True)

    def set_status(self, run_id: str, status: str, *, end_ms: int | None) -> None:
        """Set the status, and the end time if it is final."""
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time=end_ms)

    def log_file(self, run_id: str, path: Path, name: str) -> None:
        """Log a file as the artifact of that name."""
        folder = Path(name).parent.as_posix()
        self.client.log_artifact(run_id, str(path), None if folder == "." else folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Log a text as the artifact of that name."""
        self.client.log_text(run_id, text, name)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def create_tables(file: Path) -> None:
    """Create the tables of a SQLite store.

    MLflow does so by itself only once a process. It takes dozens of migrations, so they run in a temporary file: a
    process that is killed leaves no store that cannot be opened.
    """
    # 0.5 CPU-seconds, which a client of a server does not need.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        SqlAlchemyStore(f"sqlite:///{part}", (file.parent / "mlruns").as_uri())  # type: ignore[no-untyped-call]
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _as_tracking_error(uri: str) -> Iterator[None]:
    """Turn errors of MLflow into a TrackingError of one line."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise refusal(uri, error) from error


def _folder_name(experiment: str) -> str:
    """Return an experiment's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", experiment).strip(".") or "experiment"
