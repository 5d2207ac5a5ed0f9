"""Start the warm interpreter (tests/warm_python.py), one for all pytest workers, on its first use."""

from __future__ import annotations

import os
import shlex
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
_EXECUTABLE = """#!/bin/sh
case "$1 $2" in
"-m crisscross.tracking.sync_process" | "-m launch.sync") exec {warm} "$@" ;;
*) exec {python} "$@" ;;
esac
"""


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
        _command[:] = _client()
    return _command


def _socket() -> Path:
    return FOLDER / "socket"


def _client() -> list[str]:
    return [sys.executable, "-I", "-S", str(SCRIPT), str(_socket())]


def _start() -> None:
    """Start the server, and write the executable that is ``sys.executable`` in its forks.

    It starts syncs to MLflow as forks, too: importing MLflow takes three CPU-seconds, and jobs start many of them.
    """
    executable = FOLDER / "python"
    executable.write_text(_EXECUTABLE.format(warm=shlex.join(_client()), python=shlex.quote(sys.executable)))
    executable.chmod(0o755)
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
