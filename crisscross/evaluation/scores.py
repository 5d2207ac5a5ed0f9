"""Top-k accuracy from the scores of clips."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose label is in the top k.

    Ties go to the lower class index. A score of -inf, for a class without training clips, is never a hit.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    possible = np.isfinite(np.take_along_axis(scores, ranked, axis=1))
    return float(((ranked == labels[:, None]) & possible).any(axis=1).mean())


def all_classes(scores: np.ndarray, present: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Extend scores to all classes.

    Args:
        scores: (N, k), of the classes with training clips.
        present: (k,) the indices of these classes.
        num_classes: K.

    Returns:
        (N, K), -inf for the other classes.
    """
    whole = np.full((len(scores), num_classes), -np.inf)
    whole[:, present] = scores
    return whole
