"""Start the warm interpreter (tests/warm_python.py), one for all pytest workers, on its first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from tests.leftovers import clean_environment

SCRIPT = Path(__file__).with_name("warm_python.py")
START_TIMEOUT_S = 300.0
OWNER = int(os.environ.setdefault("CRISSCROSS_TESTS_OWNER", str(os.getpid())))
"""Process that stops the interpreter: pytest itself, from which its workers inherit the variable."""

FOLDER = Path("/tmp") / f"warm-{OWNER}"  # the path of a socket must be short
_command: list[str] = []


def warm_python() -> list[str]:
    """Return a command to use like ``[sys.executable]``, for many small children.

    Not for tests of imports, of environment variables that libraries read on import, or of the children of a killed
    process.
    """
    if not _command:
        FOLDER.mkdir(exist_ok=True)
        with FileLock(FOLDER / "lock"):
            if not _socket().exists():
                _start()
        _command[:] = [sys.executable, "-I", "-S", str(SCRIPT), str(_socket())]
    return _command


def _socket() -> Path:
    return FOLDER / "socket"


def _start() -> None:
    server = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), "--serve", str(_socket()), str(OWNER)],
        env={
            **clean_environment(),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MPLBACKEND": "agg",
        },
        cwd="/tmp",
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _socket().exists():
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise RuntimeError("the warm interpreter does not start")
        time.sleep(0.05)


def stop_warm_python() -> None:
    """Stop the warm interpreter, if one runs and this process owns it."""
    if os.getpid() == OWNER and FOLDER.exists():
        shutil.rmtree(FOLDER)  # the server ends within a second after its socket
