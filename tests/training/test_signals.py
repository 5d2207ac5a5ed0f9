"""Signals set a flag; a second Ctrl-C raises KeyboardInterrupt."""

from __future__ import annotations

import signal

import pytest

from crisscross.utils import signals
from crisscross.utils.signals import ShutdownSignal


def test_signals_set_the_flag() -> None:
    flag = ShutdownSignal()
    assert not flag.requested
    flag._handle(signal.SIGTERM, None)
    assert flag.requested
    assert flag.signal_name == "SIGTERM"


def test_a_sigint_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = ShutdownSignal()
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    flag._handle(signal.SIGINT, None)
    now = 100.5
    flag._handle(signal.SIGINT, None)
    now = 102.0
    with pytest.raises(KeyboardInterrupt):
        flag._handle(signal.SIGINT, None)
