"""File locks on file systems without flock, simulated by a preloaded library."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from crisscross.utils.files import NO_LOCKS, file_lock
from tests.requirements import missing
from tests.support import TINY_OVERRIDES

NO_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int op) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


@pytest.fixture(scope="module")
def no_flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        missing("there is no gcc to build a file system without flock")
    library = tmp_path_factory.mktemp("flock") / "no_flock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=NO_FLOCK, text=True, check=True)
    return library


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (("launch/sweep_relaxation.py", "relaxation=[none]"), errno.ENOSYS),
        (("experiments/pretrain.py",), errno.ENOLCK),
    ],
)
def test_nothing_starts_where_there_are_no_locks(
    tmp_path: Path, no_flock: Path, command: tuple[str, ...], number: int
) -> None:
    done = subprocess.run(
        [sys.executable, *command, *TINY_OVERRIDES, f"runs_root={tmp_path / 'runs'}", f"data.root={tmp_path / 'data'}"],
        env={**os.environ, "LD_PRELOAD": str(no_flock), "FLOCK_ERRNO": str(number)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert f"has no file locks ({os.strerror(number)})" in last
    assert "mounted at /" in last
    assert "runs_root=DIR" in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/pretrain/*/checkpoints"))


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(20):
            with file_lock(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    with file_lock(path), pytest.raises(TimeoutError):
        file_lock(path, timeout_s=0).acquire()


@pytest.mark.parametrize("number", NO_LOCKS)
def test_every_such_error_names_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=rf"has no file locks \({os.strerror(number)}\), .* use a folder on another"):
        file_lock(tmp_path / "lock").acquire()
