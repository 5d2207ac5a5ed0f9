"""What all tests of evaluations share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors here are tiny: handing them to several threads takes longer than computing them."""
    torch.set_num_threads(1)
