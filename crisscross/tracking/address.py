"""Parse addresses of MLflow stores, without MLflow."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from crisscross.utils.redact import mask_passwords

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "crisscross"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
CONNECT_TIMEOUT_S = 5.0  # ours
LOCK_TIMEOUT_S = 120.0  # ours: another sync of the same run, or to the same SQLite file, takes less


class TrackingError(RuntimeError):
    """Error of an MLflow store that cannot be reached or refuses.

    Nothing is lost: run directories have everything.
    """


def absolute(uri: str) -> str:
    """Return the URI with the path of a SQLite file made absolute.

    Raises:
        ValueError: if MLflow does not accept the URI.
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


def check_port(uri: str) -> None:
    """Check that a server listens at an HTTP address.

    MLflow itself would try for much longer.

    Raises:
        TrackingError: if none does.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return  # behind a proxy: no direct connection to test
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise refusal(uri, error) from None


def refusal(uri: str, error: BaseException) -> TrackingError:
    """Return an error of the store in one line.

    The error is one of MLflow, its database or the operating system.
    """
    reason = mask_passwords((str(error) or type(error).__name__).splitlines()[0][:300])
    return TrackingError(f"MLflow at {mask_passwords(uri)}: {reason}")
