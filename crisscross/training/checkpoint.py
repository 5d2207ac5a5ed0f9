"""Checkpoints that survive: written beside, fsynced, renamed; verified when read; saved without stopping training.

A checkpoint is two files: ``step-000000120.pt`` and, written after it, ``step-000000120.json`` with its SHA-256. One
without the other, or one whose hash differs, is torn or corrupt: it is passed over with a warning and the one before
it is used.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from crisscross.run.metrics_log import MetricsLog, read_metrics
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.distributed import DistributedContext
from crisscross.utils.files import read_json, write_atomically, write_json

logger = logging.getLogger(__name__)

CHECKPOINTS_BEYOND_KEPT = 3
"""The last two (``CheckpointWriter``'s ``keep_last``) and the one that is being written."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class CheckpointWriter:
    """Writes checkpoints in the background; at most one write is under way."""

    def __init__(
        self, directory: Path, *, keep_steps: Collection[int] = (), keep_last: int = 2, history_step: int = 0
    ) -> None:
        """Prepare to write.

        Args:
            directory: the run's ``checkpoints`` folder; made when it is not there.
            keep_steps: steps whose checkpoints stay for good.
            keep_last: how many of the newest stay besides.
            history_step: the step up to which the metric history is durable already; more than the step that training
                goes on from when it had to fall back behind a damaged checkpoint.
        """
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._keep_steps = frozenset(keep_steps)
        self._keep_last = keep_last
        self._history_step = history_step
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: dict[str, Any], *, metrics_bytes: int) -> None:
        """Copy the state to host memory and write it in the background.

        The caller waits for the copy alone, and for the write before this one if it is still under way.

        Args:
            step: optimiser steps done.
            state: nested dicts and lists of tensors and scalars.
            metrics_bytes: length of the metric history that this checkpoint covers.

        Raises:
            CheckpointError: when the write *before* this one failed.
        """
        self.wait()
        copy = _to_host(state)
        self._thread = threading.Thread(target=self._write, args=(step, copy, metrics_bytes), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until what was saved is durable.

        Raises:
            CheckpointError: when it could not be written, saying why and what to do.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(
                f"cannot write a checkpoint to {self._directory}: {reason}: those before it are"
                " intact; free some space (or fix the folder) and launch again to go on from there"
            ) from error

    def _write(self, step: int, state: dict[str, Any], metrics_bytes: int) -> None:
        try:
            path = checkpoint_path(self._directory, step)
            digest = hashlib.sha256()
            write_atomically(path, lambda file: _save_hashed(state, file, digest))
            history = {"history_step": max(step, self._history_step), "metrics_bytes": metrics_bytes}
            write_json(path.with_suffix(".json"), {"step": step, "sha256": digest.hexdigest(), **history})
            write_json(self._directory.parent / "durable.json", history)
            self._prune()
        except Exception as error:  # whatever it is: `wait` raises it in the training thread
            self._error = error

    def _prune(self) -> None:
        steps = _steps(self._directory)
        for step in steps[: -self._keep_last]:
            if step not in self._keep_steps:
                _delete(checkpoint_path(self._directory, step))
        for leftover in self._directory.glob(".*.part"):
            leftover.unlink(missing_ok=True)


def require_space(directory: Path, num_bytes: int) -> None:
    """Check that the disk has room for checkpoints; those that are there count as room.

    Args:
        directory: the run's ``checkpoints`` folder.
        num_bytes: what all checkpoints take at a time.

    Raises:
        OSError: if it has not, one line with both numbers.
    """
    needed = num_bytes - sum(path.stat().st_size for path in directory.glob("*.pt"))
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            f"{directory}: the checkpoints of this training may take {needed / 1e9:.1f} GB more, the disk has"
            f" {free / 1e9:.1f} GB left: free some space, set runs_root to another disk, or keep fewer"
            " (training.keep_epochs)"
        )


def load_latest(directory: Path, *, discard_damaged: bool = False) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Load the newest checkpoint that is whole.

    Args:
        directory: the run's ``checkpoints`` folder.
        discard_damaged: delete the damaged ones on the way, so that they never count among those to keep.

    Returns:
        The state (on the CPU) and what is known about it (``step``, ``history_step``, ``metrics_bytes``); None when
        there is none.

    Raises:
        OSError: when a checkpoint cannot be read: it may be whole, so nothing else is tried in its stead.
    """
    for step in reversed(_steps(directory)):
        path = checkpoint_path(directory, step)
        try:
            return load_checkpoint(path)
        except ValueError as error:
            logger.warning("%s: passed over, trying the checkpoint before it", error)
            if discard_damaged:
                _delete(path)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load one checkpoint after verifying its hash.

    Raises:
        ValueError: when it is torn or corrupt, naming it.
    """
    try:
        about = read_json(path.with_suffix(".json"))
    except ValueError:
        about = None
    content = path.read_bytes()
    if about is None or hashlib.sha256(content).hexdigest() != about.get("sha256"):
        raise ValueError(f"{path} is torn or corrupt")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), about


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return the file of a step's checkpoint."""
    return directory / f"step-{step:09d}.pt"


def _delete(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in directory.glob("step-*.pt"))


def _to_host(value: Any) -> Any:
    """Deep copy with every tensor in host memory, detached from what training goes on to change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(item) for item in value)
    return value


def _save_hashed(state: dict[str, Any], file: BinaryIO, digest: Any) -> None:
    hashing = _HashingFile(file, digest)
    try:
        torch.save(state, hashing)  # type: ignore[arg-type]  # all it asks for is `write` and `flush`
    except RuntimeError as error:
        raise hashing.error or error from None


class _HashingFile(io.RawIOBase):
    """A write-only file that hashes what passes through it, so that the content is not read a second time."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file = file
        self._digest = digest
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error  # PyTorch turns it into one of its own, which does not say what is wrong
            raise

    def flush(self) -> None:
        self._file.flush()


FROM_THE_START = {"step": 0, "history_step": 0, "metrics_bytes": 0}


class CheckpointManager:
    """Checkpoints and history in a run directory.

    Attributes:
        journal: the history, on rank 0, once the books are open.
    """

    journal: MetricsLog
    _writer: CheckpointWriter

    def __init__(self, run: RunDirectory, world: DistributedContext) -> None:
        self.run, self.world = run, world

    def newest(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return the state in the newest valid checkpoint, None where there is none, and what is known of it.

        Raises:
            OSError: when a checkpoint cannot be read: it may be whole.
        """
        loaded, error = None, None
        if self.world.is_main_process:
            try:
                loaded = load_latest(self.run.checkpoints, discard_damaged=True)
            except OSError as problem:
                error = problem
        self.world.raise_on_any_rank(error)
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
        if self.world.is_main_process:
            declared = read_json(self.run.path / "durable.json") or about
            history = max(about, declared, key=lambda entry: entry["history_step"])
            try:
                self.journal = MetricsLog(
                    self.run.metrics_path, resume_at=history["metrics_bytes"], durable_step=history["history_step"]
                )
                self._writer = CheckpointWriter(
                    self.run.checkpoints, keep_steps=[*keep_steps], history_step=history["history_step"]
                )
            except (ValueError, OSError) as problem:
                error = problem
        self.world.raise_on_any_rank(error)

    def record(self, step: int, metrics: Mapping[str, float], *, measured: Mapping[str, float]) -> dict[str, float]:
        """Write a step's metrics, averaged over the ranks, and return them. Times and loads are those of rank 0."""
        metrics = self.world.mean(dict(metrics))
        if self.world.is_main_process:
            self.journal.write(step, {**metrics, **measured})
        return metrics

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint.

        Raises:
            CheckpointError: when the one before could not be written.
            OSError: when the history could not be.
        """
        error = None
        if self.world.is_main_process:
            started = time.monotonic()
            try:
                self._writer.save(step, state, metrics_bytes=self.journal.sync())
            except (CheckpointError, OSError) as problem:
                error = problem
            held_up_ms = 1e3 * (time.monotonic() - started)
            logger.info("checkpoint at step %d held training up for %.0f ms", step, held_up_ms)
        self.world.raise_on_any_rank(error)

    def make_durable(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: when it could not be written.
        """
        error = None
        if self.world.is_main_process:
            try:
                self._writer.wait()
            except CheckpointError as problem:
                error = problem
        self.world.raise_on_any_rank(error)

    def close(self) -> None:
        """Let go of the run directory, whatever happened: no thread may write there once the lock is gone."""
        if self.world.is_main_process:
            try:
                self._writer.wait()
            except CheckpointError as error:
                logger.error("%s", error)
            self.journal.close()

    def summary(self, step: int) -> dict[str, Any]:
        """Return what ``result.json`` says of a training that has ended at ``step``; for rank 0."""
        last: dict[str, float] = {}
        for line in read_metrics(self.run.metrics_path):
            last = line["metrics"]
        checkpoint = checkpoint_path(self.run.checkpoints, step).name
        return {"steps": step, "checkpoint": f"checkpoints/{checkpoint}", "metrics": last}
