"""Checkpoints that survive: written beside, fsynced, renamed; verified when read; saved without stopping training.

A checkpoint is two files: ``step-000000120.pt`` and, written after it, ``step-000000120.json`` with its SHA-256. One
without the other, or one whose hash differs, is torn or corrupt: it is passed over with a warning and the one before
it is used.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch

from crisscross.files import read_json, write_atomically, write_json

logger = logging.getLogger(__name__)


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


def load_newest(directory: Path, *, discard_damaged: bool = False) -> tuple[dict[str, Any], dict[str, Any]] | None:
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
