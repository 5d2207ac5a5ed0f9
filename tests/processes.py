"""Processes that tests strike."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence


def kill_when(command: Sequence[str], reached: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Start a command and SIGKILL it as soon as it has come so far, or has taken too long."""
    struck = subprocess.Popen(command)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not reached():
        time.sleep(0.002)
    struck.kill()
    struck.wait()


def run_at_once(command: Sequence[str], *, num: int, timeout_s: float = 120.0) -> None:
    """Run a command several times at once; each must succeed."""
    several = [subprocess.Popen(command) for _ in range(num)]
    assert [process.wait(timeout=timeout_s) for process in several] == [0] * num
