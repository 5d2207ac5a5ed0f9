"""Scores of clips: what counts as a hit."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose label is among the k highest scores.

    Ties go to the lower class index; a class with a score of -inf, which was not trained on, is never a hit.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    possible = np.isfinite(np.take_along_axis(scores, ranked, axis=1))
    return float(((ranked == labels[:, None]) & possible).any(axis=1).mean())


def all_classes(scores: np.ndarray, present: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Return scores of all classes.

    Args:
        scores: (N, k), of the classes that were trained on.
        present: (k,) their indices.
        num_classes: K.

    Returns:
        (N, K), -inf for the others.
    """
    whole = np.full((len(scores), num_classes), -np.inf)
    whole[:, present] = scores
    return whole
