"""Starts the warm interpreter (tests/warm_python.py), one a pytest worker, when a test first asks for it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.leftovers import clean_environment

SCRIPT = Path(__file__).with_name("warm_python.py")
START_TIMEOUT_S = 300.0


class _Server:
    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp")  # a socket's path is short
        address = Path(self._folder.name) / "socket"
        self.command = [sys.executable, "-I", "-S", str(SCRIPT), str(address)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), "--serve", str(address)],
            env={
                **clean_environment(),
                "OMP_NUM_THREADS": "1",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MPLBACKEND": "agg",
            },
            cwd=self._folder.name,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not address.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the warm interpreter does not start")
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


_servers: list[_Server] = []


def warm_python() -> list[str]:
    """Return a command that is used as ``[sys.executable]`` is, for children that are many and small.

    Not for tests of what is imported, of environment variables that libraries read when they are imported, or of
    what becomes of the children of a process that is killed.
    """
    if not _servers:
        _servers.append(_Server())
    return _servers[0].command


def stop_warm_python() -> None:
    """End it; nothing happens where none was started."""
    while _servers:
        _servers.pop().stop()
