"""A store with tables and nothing in it."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def uri(empty_store, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return "sqlite:///mlflow.db"
