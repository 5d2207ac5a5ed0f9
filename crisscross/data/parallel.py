"""Processes that share the making of many files: a pool, a part for each array task, a folder for files half made."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

_STALE_AFTER_S = 3600.0  # making a file takes seconds: an older working folder belongs to a killed process
Item = TypeVar("Item")


def num_usable_cores() -> int:
    """Return how many cores this process may use: what a Slurm job was granted, not what the node has.

    Not every cluster binds a job to its cores, so what was asked for counts, too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdigit() and int(granted) else cores


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Return a pool whose processes leave Ctrl-C to this one and do not outlive it.

    Spawned, not forked: the caller may have threads (torch) that a fork would break.
    """
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # a pool's process has one

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def working_folder(root: Path) -> Iterator[Path]:
    """Give a hidden folder below ``root`` for files being written; those that killed processes left are removed."""
    for old in root.glob(".making-*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up, too
            if time.time() - old.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(old, ignore_errors=True)
    workplace = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def check_work(jobs: int | None, share: tuple[int, int]) -> None:
    """Make sure that a number of processes and a share make sense.

    Args:
        jobs: processes; None means one a usable core.
        share: (k, n): this call's part is the k-th of n, counted from 1.

    Raises:
        ValueError: they do not.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: at least 1 process is needed")
    k, n = share
    if not 1 <= k <= n:
        raise ValueError(f"share={k}/{n}: give k/n with k from 1 to n, such as 1/4 to 4/4 for four array tasks")


def share_of(items: Sequence[Item], share: tuple[int, int]) -> list[Item]:
    """Return every n-th item from the k-th on; the shares of all k make up the whole."""
    k, n = share
    return list(items[k - 1 :: n])
