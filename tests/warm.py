"""Starts the warm interpreter (tests/warm_python.py) and says by which command a test uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("warm_python.py")
START_TIMEOUT_S = 300.0


class WarmPython:
    """A server from which tests take forks; ``command`` is used as ``sys.executable`` is."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-", dir="/tmp")  # a socket's path is short
        self._socket = Path(self._folder.name) / "socket"
        self.command = [sys.executable, "-I", "-S", str(SCRIPT), str(self._socket)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WarmPython:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), "--serve", str(self._socket)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"},
            cwd=self._folder.name,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the warm interpreter does not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()
