"""Checkpoints: written atomically in the background, verified when loaded.

A checkpoint is two files: ``step-000000120.pt`` and, written after it, ``step-000000120.json`` with its SHA-256. If one
file is missing or the hash differs, the checkpoint is torn or corrupt: it is skipped with a warning, and the one before
it is loaded.
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
"""The last two (``keep_last`` of ``CheckpointWriter``) and the one that is being written."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written."""


class CheckpointWriter:
    """Background writer of checkpoints; at most one write at a time."""

    def __init__(
        self, directory: Path, *, keep_steps: Collection[int] = (), keep_last: int = 2, history_step: int = 0
    ) -> None:
        """Create the folder of the checkpoints.

        Args:
            directory: the run's ``checkpoints`` folder; created if missing.
            keep_steps: steps whose checkpoints are kept permanently.
            keep_last: number of newest checkpoints that are kept in addition.
            history_step: last step whose metrics are committed; greater than the step that training resumes from if a
                damaged checkpoint was skipped.
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

        The caller waits only for the copy, and for the previous write if it is still running.

        Args:
            step: optimizer steps done.
            state: nested dicts and lists of tensors and scalars.
            metrics_bytes: length of the metrics log that this checkpoint covers.

        Raises:
            CheckpointError: if the *previous* write failed.
        """
        self.wait()
        copy = _to_host(state)
        self._thread = threading.Thread(target=self._write, args=(step, copy, metrics_bytes), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: if it cannot be written; the message has the reason and the remedy.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(
                f"cannot write a checkpoint to {self._directory}: {reason}: earlier ones are"
                " intact; free some space (or fix the folder) and launch again to resume from there"
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
        except Exception as error:  # of any kind: `wait` raises it in the training thread
            self._error = error

    def _prune(self) -> None:
        steps = _steps(self._directory)
        for step in steps[: -self._keep_last]:
            if step not in self._keep_steps:
                _delete(checkpoint_path(self._directory, step))
        for leftover in self._directory.glob(".*.part"):
            leftover.unlink(missing_ok=True)


def require_space(directory: Path, num_bytes: int) -> None:
    """Check that the disk has room for checkpoints.

    Existing checkpoints count as room.

    Args:
        directory: the run's ``checkpoints`` folder.
        num_bytes: size of all checkpoints at the same time.

    Raises:
        OSError: if there is too little space; one line with both numbers.
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
    """Load the newest valid checkpoint.

    Args:
        directory: the run's ``checkpoints`` folder.
        discard_damaged: whether to delete damaged ones, so that they do not count among those to keep.

    Returns:
        The state (on the CPU) and its metadata (``step``, ``history_step``, ``metrics_bytes``); None if there is no
        valid checkpoint.

    Raises:
        OSError: if a checkpoint cannot be read: it may be valid, so no earlier one is used instead.
    """
    for step in reversed(_steps(directory)):
        path = checkpoint_path(directory, step)
        try:
            return load_checkpoint(path)
        except ValueError as error:
            logger.warning("%s: skipped, trying the checkpoint before it", error)
            if discard_damaged:
                _delete(path)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load one checkpoint after verifying its hash.

    Raises:
        ValueError: if it is torn or corrupt; the message names it.
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
    """Return the path of a step's checkpoint."""
    return directory / f"step-{step:09d}.pt"


def _delete(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in directory.glob("step-*.pt"))


def _to_host(value: Any) -> Any:
    """Return a deep copy with every tensor in host memory."""
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
        torch.save(state, hashing)  # type: ignore[arg-type]  # it only calls `write` and `flush`
    except RuntimeError as error:
        raise hashing.error or error from None


class _HashingFile(io.RawIOBase):
    """A write-only file that hashes its content while writing."""

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
            self.error = error  # PyTorch replaces it by a RuntimeError without the reason
            raise

    def flush(self) -> None:
        self._file.flush()


NO_CHECKPOINT = {"step": 0, "history_step": 0, "metrics_bytes": 0}


class CheckpointManager:
    """Checkpoints and metrics log of a run directory; only rank 0 writes.

    Attributes:
        metrics_log: the open log, on rank 0, after ``open``.
    """

    metrics_log: MetricsLog
    _writer: CheckpointWriter

    def __init__(self, run: RunDirectory, world: DistributedContext) -> None:
        self.run, self.world = run, world

    def load_latest(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return state and metadata of the newest valid checkpoint.

        Without one, the state is None.

        Raises:
            OSError: if a checkpoint cannot be read: it may be valid.
        """
        loaded, error = None, None
        if self.world.is_main_process:
            try:
                loaded = load_latest(self.run.checkpoints, discard_damaged=True)
            except OSError as problem:
                error = problem
        self.world.raise_on_any_rank(error)
        about = self.world.broadcast(None if loaded is None else loaded[1])
        if about is None:
            return None, NO_CHECKPOINT
        state, _ = loaded or load_checkpoint(checkpoint_path(self.run.checkpoints, about["step"]))
        return state, about

    def open(self, about: Mapping[str, Any], *, keep_steps: Iterable[int]) -> None:
        """Truncate the metrics log to its committed part and open it.

        It is opened for writing.

        Args:
            about: metadata of the checkpoint that training resumes from.
            keep_steps: steps whose checkpoints are kept permanently.

        Raises:
            ValueError: if the metrics log is damaged.
            OSError: if the metrics log cannot be written.
        """
        error = None
        if self.world.is_main_process:
            declared = read_json(self.run.path / "durable.json") or about
            history = max(about, declared, key=lambda entry: entry["history_step"])
            try:
                self.metrics_log = MetricsLog(
                    self.run.metrics_path, resume_at=history["metrics_bytes"], durable_step=history["history_step"]
                )
                self._writer = CheckpointWriter(
                    self.run.checkpoints, keep_steps=[*keep_steps], history_step=history["history_step"]
                )
            except (ValueError, OSError) as problem:
                error = problem
        self.world.raise_on_any_rank(error)

    def record(self, step: int, metrics: Mapping[str, float], *, measured: Mapping[str, float]) -> dict[str, float]:
        """Write a step's metrics, averaged over ranks, and return them.

        ``measured`` is not averaged: times and loads are those of rank 0.
        """
        metrics = self.world.mean(dict(metrics))
        if self.world.is_main_process:
            self.metrics_log.write(step, {**metrics, **measured})
        return metrics

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Start to write a checkpoint.

        Raises:
            CheckpointError: if the previous one cannot be written.
            OSError: if the metrics log cannot be written.
        """
        error = None
        if self.world.is_main_process:
            started = time.monotonic()
            try:
                self._writer.save(step, state, metrics_bytes=self.metrics_log.sync())
            except (CheckpointError, OSError) as problem:
                error = problem
            held_up_ms = 1e3 * (time.monotonic() - started)
            logger.info("checkpoint at step %d held training up for %.0f ms", step, held_up_ms)
        self.world.raise_on_any_rank(error)

    def flush(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: if it cannot be written.
        """
        error = None
        if self.world.is_main_process:
            try:
                self._writer.wait()
            except CheckpointError as problem:
                error = problem
        self.world.raise_on_any_rank(error)

    def close(self) -> None:
        """Finish all writes, before the lock of the run directory is released."""
        if self.world.is_main_process:
            try:
                self._writer.wait()
            except CheckpointError as error:
                logger.error("%s", error)
            self.metrics_log.close()

    def summary(self, step: int) -> dict[str, Any]:
        """Return the entries of ``result.json`` for a training that ended at ``step``."""
        last: dict[str, float] = {}
        for line in read_metrics(self.run.metrics_path):
            last = line["metrics"]
        checkpoint = checkpoint_path(self.run.checkpoints, step).name
        return {"steps": step, "checkpoint": f"checkpoints/{checkpoint}", "metrics": last}
