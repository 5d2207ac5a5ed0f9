"""The last job of a study on Slurm: bring MLflow up to date, then make the table.

    python -m launch.table RECORD

RECORD is the study's file below ``runs/studies``. Does the work again, harmlessly, each time it is started.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.files import read_json, write_json
from crisscross.record import mask_passwords
from crisscross.tracking import TrackingError
from launch.records import table_result_path


def main(arguments: Sequence[str]) -> int:
    """Make the table of a study; return 0 when there is one."""
    if len(arguments) != 1:
        print("usage: python -m launch.table RECORD", file=sys.stderr)
        return 2
    # Short, and harmless to do again: whoever wants this job gone may kill it and queue it again.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    path = Path(arguments[0])
    record = read_json(path)
    if record is None:
        print(f"{path}: there is no such study", file=sys.stderr)
        return 1
    code, reason = make(path, record)
    write_json(table_result_path(path), {"time": time.time(), "error": reason if code else ""})
    return code


def make(path: Path, record: Mapping[str, Any]) -> tuple[int, str]:
    """Bring MLflow up to date and make the table; return the exit code and, where there is none, the reason."""
    from launch.sync import bring_up_to_date

    runs_root, tracking = path.parents[1], record["tracking"]
    lines = bring_up_to_date(runs_root, [record])
    for line in lines:
        print(line, flush=True)
    if tracking["delivery"] == "off":
        print("tracking.delivery=off: nothing was recorded in MLflow, so there is no table")
        return 0, ""
    from analysis.make_tables import print_tables

    try:
        code = print_tables(
            tracking["uri"],
            experiment=tracking["experiment"],
            study=record["study"],
            fingerprint=record["fingerprint"],
            out=runs_root.parent / "tables",
        )
    except (TrackingError, ValueError, OSError) as error:
        reason = mask_passwords(str(error))
        print(f"no table: {reason}: uv run analysis/make_tables.py makes it", file=sys.stderr)
        return 1, reason
    waiting = [line for line in lines if " wait: " in line]
    return code, waiting[0] if waiting else "its log says why"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
