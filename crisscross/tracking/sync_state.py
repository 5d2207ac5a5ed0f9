"""Sync state of one run (``tracking.json``), and the metrics still to send."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_json

POINTS_PER_BATCH = 1000  # MLflow's limit for one call
Point = tuple[str, float, int, int]
"""Metric name, value, time in milliseconds since 1970, step."""


@dataclass
class Sent:
    """Part of a run that one store has.

    Attributes:
        run_id: the MLflow run; empty before it is created.
        metrics_bytes: length of the part of the history that has been sent.
        last_step: the highest step that has ever been sent.
        skip_to_step: last step that is there from a history that was cut and written again.
        metric_names: the metrics in that part.
        tags: the tags as last sent.
        has_parameters: whether the parameters and the dataset have been sent.
        status: the status as last sent.
        artifacts: size in bytes and modification time in ns of each file as last sent.
        finished_as: modification time of run.json, in ns, when all of a finished run had been sent; 0 before.
    """

    run_id: str = ""
    metrics_bytes: int = 0
    last_step: int = -1
    skip_to_step: int = -1
    metric_names: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    has_parameters: bool = False
    status: str = ""
    artifacts: dict[str, list[int]] = field(default_factory=dict)
    finished_as: int = 0


class SyncState:
    """The open ``tracking.json`` of a run, for one store.

    Attributes:
        claim: random hex digits that the MLflow run has as a tag. They are written here before that run is created,
            so that a run created just before a kill is found again, not created twice.
        sent: part of the run that the store has.
    """

    def __init__(self, run: RunDirectory, store_key: str) -> None:
        """Read the file; it is written only by ``save``.

        Args:
            run: the run directory.
            store_key: the store; see ``crisscross.tracking.address.store_key``.
        """
        self._path, self._key = run.path / "tracking.json", store_key
        self._content = read_json(self._path) or {"claim": uuid.uuid4().hex, "stores": {}}
        self.claim: str = self._content["claim"]
        self.sent = Sent(**self._content["stores"].get(store_key, {}))

    def save(self) -> None:
        """Write the file, atomically."""
        self._content["stores"][self._key] = asdict(self.sent)
        write_json(self._path, self._content)

    def end_ms(self, ended_ms: int | None) -> int:
        """Return the end of the experiment; the first returned value stays."""
        if "ended_ms" not in self._content:
            self._content["ended_ms"] = ended_ms or int(1000 * time.time())
            self.save()
        return self._content["ended_ms"]


def committed_bytes(run: RunDirectory, *, done: bool) -> int:
    """Return how many bytes of the history are final.

    A checkpoint covers them: a resumed run does not cut them off.
    """
    if done:
        return run.metrics_path.stat().st_size if run.metrics_path.exists() else 0
    return (read_json(run.path / "durable.json") or {"metrics_bytes": 0})["metrics_bytes"]


def batches(path: Path, *, start: int, end: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield batches of a history's lines, with the offset after each.

    The offset is in bytes. A batch has about a thousand points. A step is never divided between two batches.

    Args:
        path: ``metrics.jsonl``; it may be missing.
        start: first byte, the start of a line.
        end: one past the last byte.
    """
    if not path.exists():
        return
    lines: list[dict[str, Any]] = []
    points = 0
    with path.open("rb") as file:
        offset = file.seek(start)
        for text in file:
            if offset + len(text) > end or not text.endswith(b"\n"):
                break
            line = json.loads(text)
            new_step = bool(lines) and line["step"] != lines[-1]["step"]
            if new_step and points + len(line["metrics"]) > POINTS_PER_BATCH:
                yield lines, offset
                lines, points = [], 0
            lines.append(line)
            points += len(line["metrics"])
            offset += len(text)
    if lines:
        yield lines, offset
