"""The retrieval protocol (as in the paper): nearest training clips."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crisscross.config.evaluation import RetrievalSettings
from crisscross.evaluation.feature_matrix import FeatureMatrix

logger = logging.getLogger(__name__)

QUERIES_PER_BLOCK = 1024  # ours


@dataclass(frozen=True)
class Neighbors:
    """The nearest gallery clips of each query.

    Attributes:
        indices: (N, k) indices into the gallery, nearest first.
        distances: (N, k) float64.
    """

    indices: np.ndarray
    distances: np.ndarray


def retrieve(queries: FeatureMatrix, gallery: FeatureMatrix, *, settings: RetrievalSettings) -> Neighbors:
    """Find the nearest neighbors of each query.

    The feature of a clip is the mean over its segments. Ties keep the order of the gallery. The number of neighbors is
    the largest rank, or ``num_neighbours`` if that is larger.

    Args:
        queries: the test clips.
        gallery: the training clips.
        settings: the protocol.
    """
    largest = max(settings.ranks)
    if largest > len(gallery.clips):
        logger.warning("the gallery has %d clips: R@%d means that any of them is a hit", len(gallery.clips), largest)
    k = min(max(largest, settings.num_neighbours), len(gallery.clips))
    kept, others = (_clip_features(rows, settings) for rows in (queries, gallery))
    different, copy_of = _without_copies(others)
    indices, distances = [], []
    for first in range(0, len(kept), QUERIES_PER_BLOCK):
        found = _distances(kept[first : first + QUERIES_PER_BLOCK], different, settings.distance)[:, copy_of]
        nearest = np.argsort(found, axis=1, kind="stable")[:, :k]
        indices.append(nearest)
        distances.append(np.take_along_axis(found, nearest, axis=1))
    return Neighbors(np.concatenate(indices), np.concatenate(distances))


def recall_at(neighbors: Neighbors, queries: np.ndarray, gallery: np.ndarray, ranks: Sequence[int]) -> dict[int, float]:
    """Return the fraction of queries with a hit among the k nearest.

    A hit is a clip of the query's class.

    Args:
        neighbors: the result of ``retrieve``.
        queries: (N,) labels.
        gallery: (M,) labels.
        ranks: values of k.
    """
    hits = gallery[neighbors.indices] == queries[:, None]
    return {rank: float(hits[:, :rank].any(axis=1).mean()) for rank in ranks}


def _clip_features(rows: FeatureMatrix, settings: RetrievalSettings) -> np.ndarray:
    """Return one vector per clip, (n, D) float64."""
    blocks = []
    for block, _ in rows.blocks():
        segments = block.astype(np.float64).reshape(-1, rows.num_segments, rows.dim)
        blocks.append((_unit(segments) if settings.normalise_segments else segments).mean(axis=1))
    features = np.concatenate(blocks)
    if settings.centre:
        features -= features.mean(axis=0)
    return features


def _without_copies(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different rows (m, D), and the index among them of each row (n,).

    A matrix product may round two equal columns differently, by the processor; as one column, copies tie.
    """
    different, index = np.unique(features, axis=0, return_inverse=True)
    if len(different) == len(features):
        return features, np.arange(len(features))
    return different, index


def _distances(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    if distance == "cosine":
        return 1 - _unit(queries) @ _unit(gallery).T
    squares = (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1) - 2 * queries @ gallery.T
    return np.sqrt(np.maximum(squares, 0))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
