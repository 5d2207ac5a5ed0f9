"""Top-k accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.evaluation.scores import all_classes, top_k


def test_top_k() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 0.0]])
    labels = np.array([0, 1, 1])
    assert top_k(scores, labels, 1) == pytest.approx(1 / 3)
    assert top_k(scores, labels, 2) == 1.0
    assert top_k(scores, labels, 5) == 1.0
    scores[0, 0] = -np.inf
    assert top_k(scores, labels, 5) == pytest.approx(2 / 3)  # a class without training clips is never a hit


def test_top_k_equals_a_loop() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 4, (60, 9)).astype(float), random.integers(0, 9, 60)  # many ties
    for k in (1, 2, 5, 20):
        hits = 0
        for row, label in zip(scores, labels, strict=True):
            better = sum(1 for other in range(9) if (-row[other], other) < (-row[label], label))
            hits += better < k
        assert top_k(scores, labels, k) == pytest.approx(hits / 60)


def test_classes_that_were_not_trained_on_score_least() -> None:
    whole = all_classes(np.array([[1.0, 2.0]]), np.array([1, 3]), num_classes=5)
    assert whole.tolist() == [[-np.inf, 1.0, -np.inf, 2.0, -np.inf]]
