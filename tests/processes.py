"""Processes that tests start and kill."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence


def kill_when(command: Sequence[str], reached: Callable[[], bool], *, timeout_s: float = 300.0) -> None:
    """Start a command and SIGKILL it when a condition holds, or after ``timeout_s``."""
    process = subprocess.Popen(command)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not reached():
        time.sleep(0.002)
    process.kill()
    process.wait()


def run_ranks(command: Sequence[str], *, num: int, timeout_s: float = 300.0) -> list[tuple[int, str]]:
    """Run a command as several ranks, as torchrun does; return exit codes and stderr of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num)}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(num)
    ]
    errors = [rank.communicate(timeout=timeout_s)[1] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, errors, strict=True)]


def run_at_once(command: Sequence[str], *, num: int, timeout_s: float = 600.0) -> None:
    """Run a command several times at once; each must succeed."""
    several = [subprocess.Popen(command) for _ in range(num)]
    assert [process.wait(timeout=timeout_s) for process in several] == [0] * num
