"""The metrics log of a run: ``metrics.jsonl``, one JSON object a line.

    {"step": 12, "time_ms": 1790000000000, "metrics": {"loss/total": -0.31, ...}}

Training writes here and nowhere else; ``tracking/sync.py`` sends it to MLflow. A checkpoint records how many bytes of
the log it covers. A run that resumes from it truncates the log there and writes the lost steps again, so every
(metric, step) occurs once. Each line keeps its own time: sending it twice changes nothing in MLflow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """The open metrics log of a running job."""

    def __init__(self, path: Path, *, resume_at: int = 0, durable_step: int = 0) -> None:
        """Open the log and truncate it to what the newest checkpoint covers.

        Args:
            path: ``metrics.jsonl``; created if missing.
            resume_at: length in bytes that the newest checkpoint ever written covers; 0 for a run from the start.
            durable_step: the step of that checkpoint. If it is corrupt and training resumes from an older one, the
                steps up to here are in the log already, and perhaps in MLflow: they are not written again.

        Raises:
            ValueError: if the file is shorter than ``resume_at``.
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
        """Append the metrics of one step, unless the log has that step."""
        if step <= self._durable_step:
            return
        line = {"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": dict(metrics)}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def sync(self) -> int:
        """Flush all lines to disk and return the length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_metrics(path: Path, *, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines between two byte offsets, which must be line ends.

    An incomplete last line is left out.

    Args:
        path: ``metrics.jsonl``; without one nothing is yielded.
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
