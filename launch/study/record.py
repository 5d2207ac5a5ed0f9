"""The records of studies on disk, for launch, status and cancel.

runs/studies/<study>-<fingerprint>.json     members, overrides, last launch
runs/studies/<study>-<fingerprint>.lock     held by the process that runs the study
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.utils.files import file_lock, read_json, write_json
from launch.study.graph import Experiment


class StudyRunningError(RuntimeError):
    """Another process runs this study."""


def last_lines(path: Path, *, num_lines: int) -> list[str]:
    """Return the last non-empty lines of a log; none without a log."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-num_lines:]


def split_arguments(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Split a command line into its runs root and the rest.

    Returns:
        The folder of the run directories, and the studies.
    """
    roots = [item.removeprefix("runs_root=") for item in arguments if item.startswith("runs_root=")]
    return Path(roots[-1] if roots else "runs"), [item for item in arguments if not item.startswith("runs_root=")]


def assignment_path(run_path: Path) -> Path:
    """Return the path of a run directory's assignment, see launch/slurm/assignments.py."""
    return run_path / "slurm.json"


def table_assignment_path(record: Path) -> Path:
    """Return the path of the assignment of a study's table."""
    return record.with_name(f".{record.stem}.table.json")


def table_result_path(record: Path) -> Path:
    """Return the path of the result of a study's table job.

    The job records its end there.
    """
    return record.with_name(f".{record.stem}.table-result.json")


def record_path(runs_root: Path, name: str) -> Path:
    """Return the path of the record of a study, ``<study>.<fingerprint>``."""
    return runs_root / "studies" / f"{name.replace('.', '-')}.json"


def write_record(
    runs_root: Path,
    name: str,
    *,
    experiments: Sequence[Experiment],
    about: Mapping[str, Any],
    overrides: Sequence[str],
    where: str = "local",
) -> dict[str, Any]:
    """Add a launch to the record of a study.

    Members of earlier launches stay.

    Args:
        runs_root: folder of the run directories.
        name: ``<study>.<fingerprint>``.
        experiments: members of this launch.
        about: ``study``, ``table``, ``fingerprint``, ``tracking``.
        overrides: the overrides of the command line.
        where: ``"local"`` or ``"slurm"``.

    Returns:
        The record; ``launched`` in it is the time of the first launch, in Unix seconds.
    """
    path = record_path(runs_root, name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = read_json(path) or {"launched": time.time(), "members": []}
    now = [_member(experiment, runs_root) for experiment in experiments]
    identities = {member["identity"] for member in now}
    record = {
        **known,
        **about,
        "members": [*(member for member in known["members"] if member["identity"] not in identities), *now],
        "overrides": list(overrides),
        "last_launch": {
            "time": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "where": where,
        },
    }
    write_json(path, record)
    path.chmod(0o600)  # tracking.uri may contain a password
    return record


def _member(experiment: Experiment, runs_root: Path) -> dict[str, Any]:
    return {
        "identity": experiment.identity,
        "kind": experiment.kind,
        "label": experiment.label,
        "path": os.path.relpath(experiment.path, runs_root.resolve()),
        "parents": [parent.identity for parent in experiment.parents],
    }


def read_records(runs_root: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read the records of all studies, or of the named ones.

    Args:
        runs_root: folder of the run directories.
        names: names such as ``relaxation`` or ``relaxation.<fingerprint>``.

    Raises:
        ValueError: if there is no such study; lists those that exist.
    """
    paths = sorted(path for path in (runs_root / "studies").glob("*.json") if not path.name.startswith("."))
    records = [read_json(path) for path in paths]
    known = {f"{record['study']}.{record['fingerprint']}": record for record in records}
    for name in names:
        if not any(name in (full, record["study"]) for full, record in known.items()):
            there = ", ".join(known) or "none yet"
            raise ValueError(f"{name}: no study of that name in {runs_root}: there is {there}")
    return [record for full, record in known.items() if not names or full in names or record["study"] in names]


def read_single_runs(runs_root: Path) -> dict[str, Any]:
    """Return a record of the experiments that belong to no study."""
    members = []
    for path in sorted(runs_root.glob("*/*/run.json")):
        about = read_json(path)
        if not about["studies"]:
            members.append(
                {
                    "identity": about["identity"],
                    "kind": about["kind"],
                    "label": about["label"],
                    "path": os.path.relpath(path.parent, runs_root),
                    "parents": [],
                }
            )
    return {"members": members}


@contextlib.contextmanager
def study_lock(runs_root: Path, name: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a study.

    The operating system releases it if the process dies.

    Args:
        runs_root: folder of the run directories.
        name: ``<study>.<fingerprint>``.
        patience_s: seconds to wait for another process; a submission takes a moment.

    Raises:
        StudyRunningError: if another process holds it; one line that names the process.
    """
    path = record_path(runs_root, name).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = file_lock(path, timeout_s=patience_s)
    try:
        lock.acquire()
    except TimeoutError:
        holder = study_holder(runs_root, name) or {}
        since = time.strftime("%H:%M:%S", time.localtime(holder.get("since", time.time())))
        raise StudyRunningError(
            f"{name} is running already: process {holder.get('pid', '?')} on {holder.get('host', '?')}, since"
            f" {since}; uv run launch/status.py shows it, uv run launch/cancel.py stops it"
        ) from None
    holder_path = _holder_path(runs_root, name)
    try:
        write_json(holder_path, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()


def study_holder(runs_root: Path, name: str) -> dict[str, Any] | None:
    """Return the process that runs a study.

    Returns:
        Pid, host and start time, or None if no process runs it.
    """
    holder = read_json(_holder_path(runs_root, name))
    if holder is None:
        return None
    try:
        with file_lock(record_path(runs_root, name).with_suffix(".lock"), timeout_s=0):
            return None
    except TimeoutError:
        return holder


def _holder_path(runs_root: Path, name: str) -> Path:
    path = record_path(runs_root, name)
    return path.with_name(f".{path.stem}.holder.json")
