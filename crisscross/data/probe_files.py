"""Probe many files in parallel, and keep the findings on disk."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowInvalid

from crisscross.data.media.probe import Probe, probe
from crisscross.data.media.streams import DecodeError
from crisscross.data.parallel import run_all
from crisscross.data.source import NO_FILE, FileStat, file_stat
from crisscross.utils.files import write_atomically

SAVE_EVERY_S = 60.0  # ours: a killed build loses at most this much probing
FEW_FILES = 32  # ours: so few are probed in this process, as starting others takes longer
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
    """Probe the files that are new or changed, and return all findings.

    Args:
        memory: a Parquet file of earlier findings, updated here, also when probing is interrupted.
        root: the folder to which the paths are relative.
        paths: the files.
        version: the version of probing; findings of another version are dropped.
        thorough: decode files completely; such findings also serve a call without it.
        jobs: processes; None = one per usable core.
        progress: whether to show a progress bar on stderr.
        others: findings of other processes; only read.
        report: called with the number of probed files and the seconds that it took.

    Returns:
        For each path the fields of ``Probe``, ``size_bytes``, ``mtime_ns``, and ``problem``: why the file cannot be
        opened, or "".

    Raises:
        RuntimeError: if no worker process starts.
    """
    remembered = _recall(memory, version)
    known = {path: old for other in others for path, old in _recall(other, version).items()} | remembered
    found: dict[str, Found] = {}
    changed = []
    for path in dict.fromkeys(paths):
        stat = file_stat(root, path)
        old = known.get(path)
        if stat is None:
            found[path] = {"problem": "file missing", **_stat_fields(NO_FILE)}
        elif old and (old["size_bytes"], old["mtime_ns"]) == stat and old["thorough"] >= thorough:
            found[path] = old
        else:
            changed.append(path)
    began = saved_at = time.monotonic()
    num_new = 0
    try:
        for path, result in run_all(
            changed,
            functools.partial(_probe, root, thorough),
            label="probing clips",
            jobs=jobs,
            few=FEW_FILES,
            progress=progress,
            on_crash=functools.partial(_crashed, root),
        ):
            found[path] = {**result, "version": version, "thorough": thorough}
            num_new += 1
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _remember(memory, remembered | found)
                saved_at = time.monotonic()
    finally:  # Ctrl-C and SIGTERM lose nothing
        if num_new or any("version" in result and path not in remembered for path, result in found.items()):
            _remember(memory, remembered | found)
    if report is not None:
        report(num_new, time.monotonic() - began)
    return found


def _probe(root: Path, thorough: bool, path: str) -> Found:
    return probe_one(root, path, thorough)


def _crashed(root: Path, path: str) -> Found:
    return {"problem": "crashes the decoder", **_stat_fields(file_stat(root, path) or NO_FILE)}


def probe_one(root: Path, path: str, thorough: bool) -> Found:
    """Probe one file; a damaged file is a finding, not an error."""
    stat = file_stat(root, path) or NO_FILE
    try:
        result = {**asdict(probe(root / path, thorough=thorough)), "problem": ""}
    except DecodeError as error:
        result = {**asdict(Probe()), "problem": error.reason}
    return {**result, **_stat_fields(stat)}


def _stat_fields(stat: FileStat) -> Found:
    return {"size_bytes": stat[0], "mtime_ns": stat[1]}


def _recall(memory: Path, version: int) -> dict[str, Found]:
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
    rows = [{"path": path, **result} for path, result in found.items() if "version" in result]
    table = pd.DataFrame(rows)
    write_atomically(memory, lambda file: table.to_parquet(file, index=False))
