"""Probe many files in parallel, remembering what was found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crisscross.data.media.probe import Probe, probe
from crisscross.data.media.streams import DecodeError
from crisscross.data.parallel import num_usable_cores, worker_pool
from crisscross.data.source import NO_FILE, FileStat, file_stat
from crisscross.utils.files import write_atomically

SAVE_EVERY_S = 60.0  # a build that is killed loses at most this much probing
FEW_FILES = 32  # so few are probed in this process: starting others takes longer
FILES_A_TASK = 8
Found = dict[str, Any]


def probe_files(
    memory: Path,
    root: Path,
    paths: Sequence[str],
    *,
    version: int,
    thorough: bool,
    jobs: int | None,
    progress: bool,
    others: Sequence[Path] = (),
    report: Callable[[int, float], None] | None = None,
) -> dict[str, Found]:
    """Return what each file holds, probing only those that are new or whose size or time changed.

    Args:
        memory: a Parquet file of earlier findings, brought up to date here, also when probing is stopped half-way.
        root: the folder to which the paths are relative.
        paths: the files.
        version: the version of probing; findings of another are dropped.
        thorough: decode files whole; findings made so serve both ways.
        jobs: processes; None means one a usable CPU.
        progress: whether to show a progress bar on stderr.
        others: further such files, of other processes; only read.
        report: told how many files were probed, and in how many seconds.

    Returns:
        For each path the fields of ``Probe``, ``size_bytes``, ``mtime_ns``, and ``problem``: why the file cannot be
        opened at all, "" when it can.
    """
    remembered = _recall(memory, version)
    known = {path: old for other in others for path, old in _recall(other, version).items()} | remembered
    found: dict[str, Found] = {}
    changed = []
    for path in dict.fromkeys(paths):
        stamp = file_stat(root, path)
        old = known.get(path)
        if stamp is None:
            found[path] = {"problem": "file missing", **_stamped(NO_FILE)}
        elif old and (old["size_bytes"], old["mtime_ns"]) == stamp and old["thorough"] >= thorough:
            found[path] = old
        else:
            changed.append(path)
    began = saved_at = time.monotonic()
    num_new = 0
    try:
        for path, result in _probe_all(root, changed, thorough=thorough, jobs=jobs, progress=progress):
            found[path] = {**result, "version": version, "thorough": thorough}
            num_new += 1
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _remember(memory, remembered | found)
                saved_at = time.monotonic()
    finally:  # whoever stops us, with Ctrl-C or SIGTERM, loses nothing
        if num_new or any("version" in result and path not in remembered for path, result in found.items()):
            _remember(memory, remembered | found)
    if report is not None:
        report(num_new, time.monotonic() - began)
    return found


def _probe_all(
    root: Path, paths: list[str], *, thorough: bool, jobs: int | None, progress: bool
) -> Iterator[tuple[str, Found]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not paths:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("probing clips", total=len(paths))
        for result in _results(root, paths, thorough, jobs or num_usable_cores()):
            bar.advance(task)
            yield result


def _results(root: Path, paths: list[str], thorough: bool, jobs: int) -> Iterator[tuple[str, Found]]:
    if jobs == 1 or len(paths) <= FEW_FILES:
        yield from ((path, probe_one(root, path, thorough)) for path in paths)
        return
    left = dict.fromkeys(paths)
    batches = [paths[i : i + FILES_A_TASK] for i in range(0, len(paths), FILES_A_TASK)]
    try:
        with worker_pool(min(jobs, len(batches))) as pool:
            tasks = [pool.submit(probe_some, root, batch, thorough) for batch in batches]
            try:
                for task in as_completed(tasks):
                    for path, result in task.result():
                        del left[path]
                        yield path, result
            finally:  # who is asked to stop does not probe the rest first
                for task in tasks:
                    task.cancel()
    except BrokenProcessPool:
        _check_that_processes_start()
        for path in list(left):  # one of these kills whoever opens it: each gets a process of its own
            yield path, _probe_apart(root, path, thorough)


def _probe_apart(root: Path, path: str, thorough: bool) -> Found:
    try:
        with worker_pool(1) as pool:
            return pool.submit(probe_one, root, path, thorough).result()
    except BrokenProcessPool:
        return {"problem": "crashes the decoder", **_stamped(file_stat(root, path) or NO_FILE)}


def _check_that_processes_start() -> None:
    try:
        with worker_pool(1) as pool:
            pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the probing processes do not start: call build_manifest under if __name__ == '__main__', or with jobs=1"
        ) from error


def probe_some(root: Path, paths: Sequence[str], thorough: bool) -> list[tuple[str, Found]]:
    """Probe a few files in a worker process."""
    return [(path, probe_one(root, path, thorough)) for path in paths]


def probe_one(root: Path, path: str, thorough: bool) -> Found:
    """Probe one file; what is wrong with it is part of the answer, not an error."""
    stamp = file_stat(root, path) or NO_FILE
    try:
        result = {**asdict(probe(root / path, thorough=thorough)), "problem": ""}
    except DecodeError as error:
        result = {**asdict(Probe()), "problem": error.reason}
    return {**result, **_stamped(stamp)}


def _stamped(stamp: FileStat) -> Found:
    return {"size_bytes": stamp[0], "mtime_ns": stamp[1]}


def _recall(memory: Path, version: int) -> dict[str, Found]:
    import pandas as pd
    from pyarrow import ArrowInvalid

    if not memory.is_file():
        return {}
    try:
        table = pd.read_parquet(memory)
    except ArrowInvalid:  # a foreign or torn file: probing again costs time only
        return {}
    table = table[table["version"] == version]
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return {record.pop("path"): record for record in records}


def _remember(memory: Path, found: dict[str, Found]) -> None:
    import pandas as pd

    rows = [{"path": path, **result} for path, result in found.items() if "version" in result]
    table = pd.DataFrame(rows)
    write_atomically(memory, lambda file: table.to_parquet(file, index=False))
