"""The examples in the docstrings of the losses give the values shown."""

from __future__ import annotations

import doctest

import pytest

from crisscross.methods import avid, cmacc, crisscross, supervised, xdc


@pytest.mark.parametrize("module", [avid, cmacc, crisscross, supervised, xdc], ids=lambda module: module.__name__)
def test_examples(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
