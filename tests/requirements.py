"""What some tests need that not every machine has."""

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
"""Marks of tests on the real clips, to be used as ``pytestmark``; ``.ci/run`` points at them."""


def missing(reason: str) -> NoReturn:
    """Skip a test for want of something that ``.ci/run`` installs; in CI, where it must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip this test: {reason}")
    pytest.skip(reason)


def uv_program() -> str:
    """Return uv's path: ``uv run`` says it. Skip, or in CI fail, where there is none."""
    return os.environ.get("UV") or shutil.which("uv") or missing("uv is not on the PATH")
