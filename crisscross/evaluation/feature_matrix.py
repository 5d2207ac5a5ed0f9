"""Features of a fold's clips as a matrix, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

BLOCK_BYTES = 2**28  # ours
"""Bytes of one block."""

IN_MEMORY_BYTES = 2**31  # ours
"""Smaller matrices are read once and stay in memory."""


@dataclass(frozen=True)
class FeatureMatrix:
    """Features of n clips; each of their V segments is a row.

    Attributes:
        arrays: (N, V, D_i) each, in memory or on disk; a row concatenates them, D = sum of D_i.
        clips: (n,) indices into the arrays, in the order of ``labels`` and of scores.
        labels: (n,) class indices.
        num_segments: number of segments used per clip, the first ones; at most V.
    """

    arrays: tuple[np.ndarray, ...]
    clips: np.ndarray
    labels: np.ndarray
    num_segments: int

    @classmethod
    def of(cls, arrays: tuple[np.ndarray, ...], clips: np.ndarray, labels: np.ndarray) -> FeatureMatrix:
        """Return the matrix of some clips, in memory if it is small."""
        rows = cls(arrays, np.asarray(clips), np.asarray(labels), arrays[0].shape[1])
        if len(rows) * rows.dim * 4 > IN_MEMORY_BYTES:
            return rows
        return replace(rows, arrays=(rows.at(slice(None)),), clips=np.arange(len(rows.clips)))

    def __len__(self) -> int:
        """Return the number of rows: clips times segments."""
        return len(self.clips) * self.num_segments

    @property
    def dim(self) -> int:
        """The number of features, D."""
        return sum(array.shape[2] for array in self.arrays)

    def at(self, clips: slice | np.ndarray) -> np.ndarray:
        """Return the features of some of the clips, (m, V, D) float32."""
        chosen = self.clips[clips]
        parts = [np.asarray(array[chosen, : self.num_segments], np.float32) for array in self.arrays]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def at_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return some rows, (m, D) float32, and their labels, (m,)."""
        clip, segment = np.divmod(rows, self.num_segments)
        parts = [np.asarray(array[self.clips[clip], segment], np.float32) for array in self.arrays]
        return np.concatenate(parts, axis=-1), self.labels[clip]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of rows, (m, D) float32, with their labels, (m,)."""
        size = max(1, BLOCK_BYTES // (self.num_segments * self.dim * 4))
        for first in range(0, len(self.clips), size):
            part = slice(first, first + size)
            yield self.at(part).reshape(-1, self.dim), self.labels[part].repeat(self.num_segments)

    def some(self, clips: np.ndarray, *, num_segments: int | None = None) -> FeatureMatrix:
        """Return the matrix of some of the clips, optionally with fewer segments."""
        chosen = self.num_segments if num_segments is None else min(num_segments, self.num_segments)
        return replace(self, clips=self.clips[clips], labels=self.labels[clips], num_segments=chosen)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each feature's mean and standard deviation, (D,) float64.

        The deviation of a constant feature is 1.
        """
        total, squares = np.zeros(self.dim), np.zeros(self.dim)
        for block, _ in self.blocks():
            total += block.sum(axis=0, dtype=np.float64)
        mean = total / len(self)
        for block, _ in self.blocks():
            squares += np.square(block - mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
        std = np.sqrt(squares / len(self))
        return mean, np.where(std > 1e-12, std, 1.0)
