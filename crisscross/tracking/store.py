"""Open an MLflow store. The import of MLflow happens here, and only here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crisscross.tracking.address import TrackingError, absolute, check_port, has_content, sqlite_file
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:  # it imports MLflow
    from crisscross.tracking.client import Store

QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The next sync is our retry. MLflow's defaults would hold one call for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Each call has its own connection: a SQLite file that was deleted and created again is opened again.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}


def quiet_mlflow() -> None:
    """Set MLflow's environment variables, before its import."""
    for key, text in QUIET.items():
        os.environ.setdefault(key, text)


def open_store(uri: str, experiment: str, *, read_only: bool = False) -> Store:
    """Open an MLflow experiment, which is created unless ``read_only``.

    Args:
        uri: MLflow's tracking URI: ``sqlite:///FILE``, ``http://HOST:PORT``, ...
        experiment: name of the MLflow experiment.
        read_only: whether nothing may be written.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses, or if there is nothing to read.
        ValueError: if MLflow does not accept the URI.
    """
    file = sqlite_file(absolute(uri))
    if read_only and file and not has_content(file):
        raise TrackingError(f"MLflow at {mask_passwords(uri)}: there is no such store")
    check_port(uri)
    quiet_mlflow()
    # The import of MLflow takes more than a second. Launch, status and analysis often need no store.
    from crisscross.tracking.client import Store

    return Store(uri, experiment, read_only=read_only)
