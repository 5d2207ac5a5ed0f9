"""A test that leaves a process, a mount or a file behind fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]
MARK = "CRISSCROSS_TEST"
"""Environment variable that names the running test to its children and theirs."""

PATIENCE_S = 60.0
"""How long what has been told to end may take."""

SHARED = ("pymp-", "torchinductor_")  # of multiprocessing's fork server and of PyTorch: for all tests of a worker
MADE_BY_COMMANDS = ("data", "runs", "tables", "figures", "mlflow.db", "mlruns", "outputs", "multirun")
_started = False


def _note_start(event: str, arguments: tuple[object, ...]) -> None:
    global _started
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        _started = True


sys.addaudithook(_note_start)


@contextmanager
def watched(name: str, *, mounts_below: Path, temporary: Path, patience_s: float = PATIENCE_S) -> Iterator[list[str]]:
    """Compare what there is before and after a test.

    Args:
        name: the test's.
        mounts_below: folder in which this worker's tests mount.
        temporary: folder for temporary files of this worker alone.
        patience_s: how long processes that have been told to end may take.

    Yields:
        What is left, a line each, once the block has ended.
    """
    global _started
    _started, left = False, []
    mounts, files = _mounts(mounts_below), _files(temporary)
    os.environ[MARK] = name
    try:
        yield left
    finally:
        os.environ.pop(MARK, None)
    if _started:
        left += [f"process {process.pid}: {_command(process)}" for process in _processes(name, patience_s)]
    left += [f"mount {mount}" for mount in _mounts(mounts_below) - mounts]
    left += [f"file {file}" for file in sorted(_files(temporary) - files)]


def _processes(name: str, patience_s: float) -> list[psutil.Process]:
    """Return the processes that a test has started and that do not end by themselves."""
    deadline = time.monotonic() + patience_s
    while (found := [process for process in psutil.process_iter() if _is_of(process, name)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    return found


def _is_of(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            return False
        parent = process.parent()
        forked = parent is not None and _is_fork_server(parent) and os.getpid() in _ancestors(parent)
        return forked or (process.environ().get(MARK) == name and not _is_fork_server(process))
    return False


def _is_fork_server(process: psutil.Process) -> bool:
    """Whether it serves all tests of a worker, though one of them was the first to ask for it."""
    command = _command(process)
    return any(word in command for word in ("multiprocessing.forkserver", "multiprocessing.resource_tracker"))


def _ancestors(process: psutil.Process) -> set[int]:
    return {parent.pid for parent in process.parents()}


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "?"


def _mounts(below: Path) -> set[str]:
    table = Path("/proc/self/mounts")
    if not table.is_file():
        return set()
    points = [line.split()[1].replace("\\040", " ") for line in table.read_text().splitlines()]
    return {point for point in points if point.startswith(f"{below}/")}


def _files(temporary: Path) -> set[str]:
    """Return what lies in the folder for temporary files, and what a command has made in the repository."""
    own = {str(path) for path in temporary.iterdir() if not path.name.startswith(SHARED)}
    return own | {str(REPOSITORY / name) for name in MADE_BY_COMMANDS if (REPOSITORY / name).exists()}


def clean_environment() -> dict[str, str]:
    """Return our environment for a process that outlives the test which starts it."""
    return {name: value for name, value in os.environ.items() if name != MARK}
