"""Work through many files: resumable, in parallel, shared between processes and array tasks."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_STALE_AFTER_S = 3600.0  # ours: making a file takes seconds, so an older working folder belongs to a killed process
_CHUNK = 4  # ours: files that a worker takes at a time
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_resumable(
    tasks: Sequence[Task],
    do_one: Callable[[Path, Task], object],
    is_done: Callable[[Task], bool],
    *,
    folder: Path,
    claim: Callable[[], None],
    label: str,
    jobs: int | None = None,
    share: tuple[int, int] = (1, 1),
    progress: bool = True,
    on_crash: Callable[[Task], object] | None = None,
) -> None:
    """Fill a folder with files, one per task, skipping what is done.

    Safe to kill, to call again, and to call from several processes at once, which then share the work.

    Args:
        tasks: what to make.
        do_one: makes one file: called with a working folder, on the file system of ``folder``, and the task. Picklable.
        is_done: whether a task needs no work.
        folder: where the files go; made if missing.
        claim: called first; raises if the folder holds something else.
        label: of the progress bar, and of messages.
        jobs: processes; None = one per usable core.
        share: (k, n): work on the k-th of n parts, counted from 1.
        progress: show a progress bar on stderr.
        on_crash: called with a task that kills its worker process; None = raise.

    Raises:
        ValueError: if ``jobs`` or ``share`` is impossible.
        BrokenProcessPool: if a task kills its worker process and there is no ``on_crash``.
        RuntimeError: if no worker process starts.
    """
    _check_work(jobs, share)
    folder.mkdir(parents=True, exist_ok=True)
    claim()
    number, num_shares = share
    todo = [task for task in tasks[number - 1 :: num_shares] if not is_done(task)]
    if not todo:
        return
    # Each call starts elsewhere, so that two concurrent calls meet late instead of making every file twice.
    first = int.from_bytes(os.urandom(4), "little") % len(todo)
    todo = todo[first:] + todo[:first]
    with _working_folder(folder) as workplace:
        make = functools.partial(do_one, workplace)
        for _ in run_all(todo, make, label=label, jobs=jobs, progress=progress, on_crash=on_crash):
            pass


def run_all(
    tasks: Sequence[Task],
    do_one: Callable[[Task], Result],
    *,
    label: str,
    jobs: int | None = None,
    few: int = 1,
    progress: bool = True,
    on_crash: Callable[[Task], Result] | None = None,
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result, as results arrive.

    Args:
        tasks: what to do.
        do_one: does one task. Picklable.
        label: of the progress bar, and of messages.
        jobs: processes; None = one per usable core.
        few: up to so many tasks are done in this process.
        progress: show a progress bar on stderr.
        on_crash: gives the result of a task that kills its worker process; None = raise.

    Raises:
        BrokenProcessPool: if a task kills its worker process and there is no ``on_crash``.
        RuntimeError: if no worker process starts.
    """
    if not tasks:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        shown = bar.add_task(label, total=len(tasks))
        jobs = jobs or num_usable_cores()
        if jobs == 1 or len(tasks) <= few:
            results: Iterator[tuple[Task, Result]] = ((task, do_one(task)) for task in tasks)
        else:
            results = _in_pool(tasks, do_one, label, jobs, on_crash)
        for task, result in results:
            bar.advance(shown)
            yield task, result


def _in_pool(
    tasks: Sequence[Task],
    do_one: Callable[[Task], Result],
    label: str,
    jobs: int,
    on_crash: Callable[[Task], Result] | None,
) -> Iterator[tuple[Task, Result]]:
    left = dict(enumerate(tasks))
    chunks = [range(i, min(i + _CHUNK, len(tasks))) for i in range(0, len(tasks), _CHUNK)]
    pool = _worker_pool(min(jobs, len(chunks)))
    try:
        futures = {pool.submit(_do_chunk, do_one, [tasks[i] for i in chunk]): chunk for chunk in chunks}
        for future in as_completed(futures):
            for i, result in zip(futures[future], future.result(), strict=True):
                yield left.pop(i), result
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        _check_that_workers_start(label)
        for task in left.values():  # one of them kills its process: each gets a process of its own
            yield task, _do_alone(do_one, task, on_crash)
    finally:  # an interruption cancels the chunks that no worker has started
        pool.shutdown(wait=True, cancel_futures=True)


def _do_chunk(do_one: Callable[[Any], Result], tasks: Sequence[Any]) -> list[Result]:
    return [do_one(task) for task in tasks]


def _do_alone(do_one: Callable[[Task], Result], task: Task, on_crash: Callable[[Task], Result] | None) -> Result:
    try:
        with _worker_pool(1) as pool:
            return pool.submit(do_one, task).result()
    except BrokenProcessPool:
        if on_crash is None:
            raise
        return on_crash(task)


def _check_that_workers_start(label: str) -> None:
    try:
        with _worker_pool(1) as pool:
            pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"{label}: the worker processes do not start: call this under if __name__ == '__main__', or with jobs=1"
        ) from error


def num_usable_cores() -> int:
    """Return how many cores this process may use.

    These are the cores of its Slurm job, not all of the node. Not every cluster binds a job to its cores, so the number
    requested limits the result, too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdigit() and int(granted) else cores


def _worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Return a pool of worker processes.

    The workers ignore Ctrl-C, which this process handles, and end with this process. They are spawned, not forked: the
    caller may have threads (torch) that a fork would break.
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
def _working_folder(root: Path) -> Iterator[Path]:
    """Create a hidden folder below ``root`` for partial files.

    It is removed at the end of the context. Old folders of killed processes are removed, too.
    """
    for old in root.glob(".making-*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes them, too
            if time.time() - old.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(old, ignore_errors=True)
    workplace = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _check_work(jobs: int | None, share: tuple[int, int]) -> None:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: at least 1 process is needed")
    k, n = share
    if not 1 <= k <= n:
        raise ValueError(f"share={k}/{n}: give k/n with k from 1 to n, such as 1/4 to 4/4 for four array tasks")
