"""A test that leaves a process, a mount or a file behind fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PROC = Path("/proc")
MARK = "CRISSCROSS_TEST"
"""Environment variable that names the running test to its children and theirs."""

PATIENCE_S = 60.0
"""Seconds that a process may take to end after its test."""

SHARED = ("pymp-", "torchinductor_", "shared-")  # of multiprocessing, of PyTorch, and shared by the tests of a worker
MADE_BY_COMMANDS = ("data", "runs", "tables", "figures", "mlflow.db", "mlruns", "outputs", "multirun")
_started = False


def _note_start(event: str, arguments: tuple[object, ...]) -> None:
    global _started
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        _started = True


sys.addaudithook(_note_start)


@contextmanager
def watched(name: str, *, mounts_below: Path, temporary: Path, patience_s: float = PATIENCE_S) -> Iterator[list[str]]:
    """Compare processes, mounts and files before and after a test.

    Args:
        name: the name of the test.
        mounts_below: the folder in which tests of this worker mount.
        temporary: the folder for temporary files of this worker.
        patience_s: seconds that a process may take to end.

    Yields:
        A list that is empty inside the block; after it, one line for everything left behind.
    """
    global _started
    _started, left = False, []
    mounts, files = _mounts(mounts_below), _files(temporary)
    os.environ[MARK] = name
    try:
        yield left
    finally:
        os.environ.pop(MARK, None)
    if _started and PROC.is_dir():
        left += [f"process {pid}: {_command(pid)}" for pid in _processes(name, patience_s)]
    left += [f"mount {mount}" for mount in _mounts(mounts_below) - mounts]
    left += [f"file {file}" for file in sorted(_files(temporary) - files)]


def _processes(name: str, patience_s: float) -> list[int]:
    """Return the processes of a test that do not end by themselves."""
    deadline = time.monotonic() + patience_s
    while (found := _found(name)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _found(name: str) -> list[int]:
    """Search /proc once: psutil takes a tenth of a second, after each of hundreds of tests."""
    parents = {int(path.name): _parent(path) for path in PROC.iterdir() if path.name.isdigit()}
    servers = {pid for pid, parent in parents.items() if parent == os.getpid() and _is_fork_server(pid)}
    mark = f"{MARK}={name}".encode()
    return [
        pid
        for pid, parent in parents.items()
        if parent is not None and pid != os.getpid() and (parent in servers or _is_marked(pid, mark))
    ]


def _parent(process: Path) -> int | None:
    """Return the parent of a process; None when it has ended."""
    with suppress(OSError):
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
        return None if state in "ZX" else int(parent)
    return None


def _is_marked(pid: int, mark: bytes) -> bool:
    with suppress(OSError):
        return mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0") and not _is_fork_server(pid)
    return False


def _is_fork_server(pid: int) -> bool:
    """Return whether this is multiprocessing's server, which all tests of a worker share."""
    return any(word in _command(pid) for word in ("multiprocessing.forkserver", "multiprocessing.resource_tracker"))


def _command(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"


def _mounts(below: Path) -> set[str]:
    table = Path("/proc/self/mounts")
    if not table.is_file():
        return set()
    points = [line.split()[1].replace("\\040", " ") for line in table.read_text().splitlines()]
    return {point for point in points if point.startswith(f"{below}/")}


def _files(temporary: Path) -> set[str]:
    """Return temporary files, and outputs of commands in the repository."""
    own = {str(path) for path in temporary.iterdir() if not path.name.startswith(SHARED)}
    return own | {str(REPOSITORY / name) for name in MADE_BY_COMMANDS if (REPOSITORY / name).exists()}


def clean_environment() -> dict[str, str]:
    """Return the environment of a process that outlives the test which starts it."""
    return {name: value for name, value in os.environ.items() if name != MARK}
