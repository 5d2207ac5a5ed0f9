"""The last job of a study on Slurm: sync MLflow, then make the table.

For a study that is launched with others (launch/reproduce_paper.py), also its figures and the common report.

    python -m launch.slurm.report_job RECORD

RECORD is the study's file below ``runs/studies``. The job can be repeated.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import make_report
from analysis.make_tables import print_tables
from crisscross.tracking.address import TrackingError
from crisscross.utils.files import file_lock, read_json, write_json
from crisscross.utils.redact import mask_passwords
from crisscross.utils.terminal import print_what_can_be_printed
from launch.slurm.mlflow_sync import sync_studies
from launch.study.record import table_result_path

REPORT_PATIENCE_S = 600.0  # ours: as long as the figures of other studies may take


def main(arguments: Sequence[str]) -> int:
    """Make the table of a study; return 0 if it is complete."""
    print_what_can_be_printed()
    if len(arguments) != 1:
        print("usage: python -m launch.slurm.report_job RECORD", file=sys.stderr)
        return 2
    # Short and repeatable: SIGKILL may end it at any time.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    path = Path(arguments[0])
    record = read_json(path)
    if record is None:
        print(f"{path}: there is no such study", file=sys.stderr)
        return 1
    code, reason = make(path, record)
    write_json(table_result_path(path), {"time": time.time(), "error": reason if code else ""})
    if record.get("together") and record["tracking"]["delivery"] != "off":
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        code = max(code, add_to_report(record, path.parents[1]))
    return code


def make(path: Path, record: Mapping[str, Any]) -> tuple[int, str]:
    """Sync MLflow and make the table.

    Returns:
        The exit code and the reason of a failure.
    """
    runs_root, tracking = path.parents[1], record["tracking"]
    lines = sync_studies(runs_root, [record], verify=True)
    for line in lines:
        print(line, flush=True)
    if tracking["delivery"] == "off":
        print("tracking.delivery=off: nothing was recorded in MLflow, so there is no table")
        return 0, ""
    try:
        code = print_tables(
            tracking["uri"],
            experiment=tracking["experiment"],
            study=record["study"],
            study_hash=record["fingerprint"],
            out=runs_root.parent / "tables",
        )
    except (TrackingError, ValueError, OSError) as error:
        reason = mask_passwords(str(error))
        print(f"no table: {reason}: uv run analysis/make_tables.py makes it", file=sys.stderr)
        return 1, reason
    waiting = [line for line in lines if " wait: " in line]
    return code, waiting[0] if waiting else "its log says why"


def add_to_report(record: Mapping[str, Any], runs_root: Path) -> int:
    """Add a study and its figures to a report.

    The report is of all studies that were launched together.

    Returns:
        The exit code.
    """
    place = {key: record["tracking"][key] for key in ("uri", "experiment")}
    studies = {"study": record["study"], "studies": record["together"]}
    try:
        # One at a time, so that the last finds the tables and figures of all.
        with file_lock(runs_root / "studies" / ".report.lock", timeout_s=REPORT_PATIENCE_S):
            return make_report.add_to_report(**place, **studies, runs_root=runs_root, out=runs_root.parent)
    except (TrackingError, ValueError, OSError) as error:  # TimeoutError is an OSError
        print(f"no page: {mask_passwords(str(error))}: uv run analysis/make_report.py makes it", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
