"""The books of a training: its checkpoints and its metric history, kept by rank 0, agreed on by all.

Every rank calls every method at the same step. What goes wrong on rank 0 is raised on all of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from crisscross.files import read_json
from crisscross.journal import Journal, read_journal
from crisscross.run_directory import RunDirectory
from crisscross.training.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoint_path,
    load_checkpoint,
    load_newest,
)
from crisscross.training.distributed import World

logger = logging.getLogger(__name__)

FROM_THE_START = {"step": 0, "history_step": 0, "metrics_bytes": 0}


class Books:
    """Checkpoints and history in a run directory.

    Attributes:
        journal: the history, on rank 0, once the books are open.
    """

    journal: Journal
    _writer: CheckpointWriter

    def __init__(self, run: RunDirectory, world: World) -> None:
        self.run, self.world = run, world

    def newest(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return the state in the newest valid checkpoint, None where there is none, and what is known of it.

        Raises:
            OSError: when a checkpoint cannot be read: it may be whole.
        """
        loaded, error = None, None
        if self.world.is_main:
            try:
                loaded = load_newest(self.run.checkpoints, discard_damaged=True)
            except OSError as problem:
                error = problem
        self.world.raise_first(error)
        about = self.world.from_main(None if loaded is None else loaded[1])
        if about is None:
            return None, FROM_THE_START
        state, _ = loaded or load_checkpoint(checkpoint_path(self.run.checkpoints, about["step"]))
        return state, about

    def open(self, about: Mapping[str, Any], *, keep_steps: Iterable[int]) -> None:
        """Cut the history to what is durable and keep what was perhaps told already; get ready to write.

        Args:
            about: what is known of the checkpoint that training goes on from.
            keep_steps: steps whose checkpoints stay for good.

        Raises:
            ValueError, OSError: when the history is damaged or cannot be written.
        """
        error = None
        if self.world.is_main:
            declared = read_json(self.run.path / "durable.json") or about
            history = max(about, declared, key=lambda entry: entry["history_step"])
            try:
                self.journal = Journal(
                    self.run.metrics_path, resume_at=history["metrics_bytes"], durable_step=history["history_step"]
                )
                self._writer = CheckpointWriter(
                    self.run.checkpoints, keep_steps=[*keep_steps], history_step=history["history_step"]
                )
            except (ValueError, OSError) as problem:
                error = problem
        self.world.raise_first(error)

    def record(self, step: int, metrics: Mapping[str, float], *, measured: Mapping[str, float]) -> dict[str, float]:
        """Write a step's metrics, averaged over the ranks, and return them. Times and loads are those of rank 0."""
        metrics = self.world.mean(dict(metrics))
        if self.world.is_main:
            self.journal.write(step, {**metrics, **measured})
        return metrics

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint.

        Raises:
            CheckpointError: when the one before could not be written.
            OSError: when the history could not be.
        """
        error = None
        if self.world.is_main:
            started = time.monotonic()
            try:
                self._writer.save(step, state, metrics_bytes=self.journal.sync())
            except (CheckpointError, OSError) as problem:
                error = problem
            held_up_ms = 1e3 * (time.monotonic() - started)
            logger.info("checkpoint at step %d held training up for %.0f ms", step, held_up_ms)
        self.world.raise_first(error)

    def make_durable(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: when it could not be written.
        """
        error = None
        if self.world.is_main:
            try:
                self._writer.wait()
            except CheckpointError as problem:
                error = problem
        self.world.raise_first(error)

    def close(self) -> None:
        """Let go of the run directory, whatever happened: no thread may write there once the lock is gone."""
        if self.world.is_main:
            try:
                self._writer.wait()
            except CheckpointError as error:
                logger.error("%s", error)
            self.journal.close()

    def summary(self, step: int) -> dict[str, Any]:
        """Return what ``result.json`` says of a training that has ended at ``step``; for rank 0."""
        last: dict[str, float] = {}
        for line in read_journal(self.run.metrics_path):
            last = line["metrics"]
        checkpoint = checkpoint_path(self.run.checkpoints, step).name
        return {"steps": step, "checkpoint": f"checkpoints/{checkpoint}", "metrics": last}
