"""The retrieval protocol (PAPER section 5): the nearest training clips of every test clip."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crisscross.config.evaluation import RetrievalSettings
from crisscross.evaluation.feature_matrix import FeatureMatrix

logger = logging.getLogger(__name__)

QUERIES_PER_BLOCK = 1024


@dataclass(frozen=True)
class Neighbours:
    """The nearest gallery clips of every query.

    Attributes:
        indices: (N, k) places in the gallery, nearest first.
        distances: (N, k).
    """

    indices: np.ndarray
    distances: np.ndarray


def retrieve(queries: FeatureMatrix, gallery: FeatureMatrix, *, settings: RetrievalSettings) -> Neighbours:
    """Find the nearest neighbours, as many as the largest rank or ``num_neighbours`` asks for.

    A clip is the mean of its segments' features. Of equally near clips the first in the gallery comes first.

    Args:
        queries: the test clips.
        gallery: the training clips.
        settings: the protocol: distance, normalisation, centring (of each set by its own mean).
    """
    largest = max(settings.ranks)
    if largest > len(gallery.clips):
        logger.warning("the gallery has %d clips: R@%d means that any of them is a hit", len(gallery.clips), largest)
    k = min(max(largest, settings.num_neighbours), len(gallery.clips))
    kept, others = (_clip_features(rows, settings) for rows in (queries, gallery))
    indices, distances = [], []
    for first in range(0, len(kept), QUERIES_PER_BLOCK):
        found = _distances(kept[first : first + QUERIES_PER_BLOCK], others, settings.distance)
        nearest = np.argsort(found, axis=1, kind="stable")[:, :k]
        indices.append(nearest)
        distances.append(np.take_along_axis(found, nearest, axis=1))
    return Neighbours(np.concatenate(indices), np.concatenate(distances))


def recall_at(
    neighbours: Neighbours, queries: np.ndarray, gallery: np.ndarray, ranks: Sequence[int]
) -> dict[int, float]:
    """Return the fraction of queries that have a clip of their class among the k nearest.

    Args:
        neighbours: what ``retrieve`` found.
        queries: (N,) labels.
        gallery: (M,) labels.
        ranks: values of k.
    """
    hits = gallery[neighbours.indices] == queries[:, None]
    return {rank: float(hits[:, :rank].any(axis=1).mean()) for rank in ranks}


def _clip_features(rows: FeatureMatrix, settings: RetrievalSettings) -> np.ndarray:
    """Return one vector a clip, (n, D) float64."""
    blocks = []
    for block, _ in rows.blocks():
        segments = block.astype(np.float64).reshape(-1, rows.num_segments, rows.dim)
        blocks.append((_unit(segments) if settings.normalise_segments else segments).mean(axis=1))
    features = np.concatenate(blocks)
    if settings.centre:
        features -= features.mean(axis=0)
    return features


def _distances(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    if distance == "cosine":
        return 1 - _unit(queries) @ _unit(gallery).T
    squares = (queries**2).sum(axis=1)[:, None] + (gallery**2).sum(axis=1) - 2 * queries @ gallery.T
    return np.sqrt(np.maximum(squares, 0))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
