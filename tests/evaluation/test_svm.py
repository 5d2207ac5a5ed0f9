"""The SVM protocol: on features whose answer is known, and on splits that are unfit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from crisscross.evaluation.svm import evaluate_svm, top_k

GRID = (1e-3, 1e-2, 1e-1)


def _clusters(num_clips: int, *, spread: float, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_clips) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 16))
    return centres[labels][:, None] + spread * random.normal(size=(num_clips, 3, 16)), labels


def _run(train, labels, test, *, num_classes=4, c_grid=GRID, num_folds=3):
    return evaluate_svm(train, labels, test, num_classes=num_classes, c_grid=c_grid, num_folds=num_folds, seed=0)


def test_separable_classes_are_found() -> None:
    train, labels = _clusters(40, spread=0.2)
    test, expected = _clusters(20, spread=0.2, seed=1)
    found = _run(train, labels, test)
    assert top_k(found.scores, expected, 1) == 1.0
    assert found.validation_top1 == 1.0
    assert found.chosen_c in GRID


def test_scores_equal_scikit_learn_by_hand() -> None:
    train, labels = _clusters(40, spread=2.0)
    test, _ = _clusters(20, spread=2.0, seed=1)
    found = _run(train, labels, test, c_grid=(0.01,))
    scaler = StandardScaler().fit(train.reshape(-1, 16))
    model = LinearSVC(C=0.01, random_state=0, max_iter=5000)
    model.fit(scaler.transform(train.reshape(-1, 16)), labels.repeat(3))
    by_hand = sum(model.decision_function(scaler.transform(test[:, segment])) for segment in range(3)) / 3
    assert np.allclose(found.scores, by_hand)


def test_noise_gives_chance() -> None:
    random = np.random.default_rng(0)
    test_labels = np.arange(400) % 4
    found = _run(random.normal(size=(200, 2, 8)), np.arange(200) % 4, random.normal(size=(400, 2, 8)))
    assert 0.15 < top_k(found.scores, test_labels, 1) < 0.35


def test_segments_of_a_clip_never_validate_themselves() -> None:
    # Identical segments within a clip, labels by chance: any leak would show as validation far above chance.
    random = np.random.default_rng(0)
    train = random.normal(size=(60, 1, 200)).repeat(5, axis=1)
    found = _run(train, random.integers(0, 4, 60), train[:4])
    assert found.validation_top1 < 0.5


def test_two_classes_and_unseen_classes() -> None:
    train, labels = _clusters(20, spread=0.1, classes=2)
    found = _run(train, labels * 2, train, num_classes=4)
    assert found.scores.shape == (20, 4)
    assert np.isneginf(found.scores[:, [1, 3]]).all()
    assert top_k(found.scores, labels * 2, 1) == 1.0


def test_unfit_splits_are_refused() -> None:
    train, labels = _clusters(8, spread=0.1)
    with pytest.raises(ValueError, match="an SVM needs clips of 2 classes to train on, got 1"):
        _run(train, np.zeros_like(labels), train)
    with pytest.raises(ValueError, match="C cannot be chosen by cross-validation with one training clip a class"):
        _run(train[:4], labels[:4], train)
    found = _run(train[:4], labels[:4], train, c_grid=(0.1,))
    assert (found.chosen_c, found.validation_top1) == (0.1, None)


def test_top_k() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 0.0]])
    labels = np.array([0, 1, 1])
    assert top_k(scores, labels, 1) == pytest.approx(1 / 3)
    assert top_k(scores, labels, 2) == 1.0
    assert top_k(scores, labels, 5) == 1.0
    scores[0, 0] = -np.inf
    assert top_k(scores, labels, 5) == pytest.approx(2 / 3)  # a class that was not trained on is never found
