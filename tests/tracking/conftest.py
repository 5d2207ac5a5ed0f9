"""A store with tables and nothing in it."""

from __future__ import annotations

import shutil
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


@pytest.fixture
def uri(empty_store, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return "sqlite:///mlflow.db"
