"""The metric history of a run: ``metrics.jsonl``, one JSON object a line.

    {"step": 12, "time_ms": 1790000000000, "metrics": {"loss/total": -0.31, ...}}

Training writes here and nowhere else; MLflow is brought up to date from it (see tracking.py). A checkpoint records how
many bytes of the journal it covers. A run that resumes from it cuts the journal there and writes the lost steps again,
so every (metric, step) stands once. Each line keeps its own time: delivering it twice changes nothing in MLflow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """The open journal of a running job."""

    def __init__(self, path: Path, *, resume_at: int = 0, durable_step: int = 0) -> None:
        """Open the journal and cut it to what is durable.

        Args:
            path: ``metrics.jsonl``; made when it is not there.
            resume_at: length in bytes that the newest checkpoint ever written covers; 0 for a run from the start.
            durable_step: the step of that checkpoint. Should it have been found corrupt and training gone back to
                the one before, the steps up to here are in the history, and perhaps in MLflow, already: they are
                computed again but not written again.

        Raises:
            ValueError: when the file is shorter than that: something else has written to it.
        """
        self._file = path.open("ab")
        length = self._file.seek(0, os.SEEK_END)
        if length < resume_at:
            raise ValueError(
                f"{path} has {length} bytes, the checkpoint covers {resume_at}: the history was damaged; "
                "delete the run directory to start over"
            )
        self._file.truncate(resume_at)
        self._durable_step = durable_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step, unless the history has that step."""
        if step <= self._durable_step:
            return
        line = {"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": dict(metrics)}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def sync(self) -> int:
        """Make everything written so far durable and return the length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_metrics(path: Path, *, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines between two byte offsets; both must be ends of lines. A line not yet complete is left out.

    Args:
        path: ``metrics.jsonl``; nothing is yielded when there is none.
        start: first byte.
        end: one past the last byte; None = the end of the file.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        while end is None or file.tell() < end:
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)
