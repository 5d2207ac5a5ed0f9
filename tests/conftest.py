"""An MLflow store with tables and nothing in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crisscross import tracking


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store with tables and nothing in them: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    tracking._import_client()
    tracking._make_tables(f"sqlite:///{folder}/mlflow.db", folder / "mlflow.db")
    return folder / "mlflow.db"
