"""Stop a study on this machine: its experiments write a checkpoint and leave. Launch it again to go on.

uv run launch/cancel.py relaxation
uv run launch/cancel.py                      when only one study runs
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.files import read_json
from crisscross.run_directory import RunDirectory
from launch.records import read_records, study_holder
from launch.status import split_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop what runs of a study, say what was stopped, and return the exit code."""
    runs_root, names = split_arguments(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(names):
        print(__doc__.strip())
        return 0
    try:
        records = [record for record in read_records(runs_root, names) if running(runs_root, record)]
        if len(records) > 1 and not names:
            there = ", ".join(f"{record['study']}.{record['fingerprint']}" for record in records)
            raise ValueError(f"several studies run: name one of {there}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not records:
        print(f"nothing runs in {runs_root}")
    for record in records:
        for line in cancel(runs_root, record):
            print(line)
    return 0


def running(runs_root: Path, record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and holder (``pid``, ``host``) of what works on a study, the launcher first."""
    name = f"{record['study']}.{record['fingerprint']}"
    launcher = study_holder(runs_root, name)
    found = [(f"launcher of {name}", launcher)] if launcher else []
    for member in record["members"]:
        path = runs_root / member["path"]
        holder = read_json(path / "holder.json") if RunDirectory(path).is_running else None
        if holder:
            found.append((member["label"], holder))
    return found


def cancel(runs_root: Path, record: Mapping[str, Any]) -> list[str]:
    """Send SIGTERM to what works on a study; the launcher comes first, or it would start the next experiment.

    Returns:
        One line a process.
    """
    lines = []
    for name, holder in running(runs_root, record):
        if holder["host"] != socket.gethostname():
            lines.append(f"{name}: runs on {holder['host']} (process {holder['pid']}): cancel it there")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder["pid"], signal.SIGTERM)
            lines.append(f"{name}: told process {holder['pid']} to write a checkpoint and leave")
    return lines


if __name__ == "__main__":
    sys.exit(main())
