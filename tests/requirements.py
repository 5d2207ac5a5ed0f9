"""Requirements of tests that not every machine meets."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

REAL_DATA = os.environ.get("CRISSCROSS_REAL_DATA")

needs_real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL_DATA, reason="CRISSCROSS_REAL_DATA does not point at the real clips"),
]
"""Marks of tests on the real clips, for ``pytestmark``; ``.ci/run`` sets the variable."""


def missing(reason: str) -> NoReturn:
    """Skip a test that lacks something which ``.ci/run`` installs; in CI, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip this test: {reason}")
    pytest.skip(reason)


def uv_program() -> str:
    """Return the path of uv (``uv run`` sets ``UV``). Skip, or in CI fail, without it."""
    return os.environ.get("UV") or shutil.which("uv") or missing("uv is not on the PATH")
