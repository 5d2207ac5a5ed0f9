"""The SVM's solver against scikit-learn's LinearSVC and against its own objective."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from crisscross.evaluation import feature_matrix
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.linear_svm import MAX_ITERATIONS, LinearSvm, fit_svm
from crisscross.utils.signals import SHUTDOWN, Preempted
from tests.evaluation.support import clusters, rows_of

CPU = torch.device("cpu")
PROBLEMS = [  # classes, spread, clips, features, factor of the first feature
    (2, 1.0, 30, 16, 1.0),
    (3, 2.0, 60, 16, 1.0),
    (5, 3.0, 60, 40, 1.0),
    (4, 1.0, 12, 100, 1.0),  # more features than rows
    (4, 2.0, 60, 16, 30.0),  # features of different scales
]


def _fit(
    rows: FeatureMatrix, *, c: float, standardise: bool, num_classes: int, start: np.ndarray | None = None
) -> LinearSvm:
    moments = rows.moments() if standardise else None
    return fit_svm(rows, num_classes=num_classes, c=c, moments=moments, device=CPU, start=start)


def _problem(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    num_classes, spread, num_clips, dim, factor = PROBLEMS[index]
    size = {"spread": spread, "num_classes": num_classes, "dim": dim}
    train, labels = clusters(num_clips, seed=index, **size)
    test, _ = clusters(20, seed=index + 50, **size)
    train[..., 0] *= factor
    test[..., 0] *= factor
    return train, labels, test, num_classes


def _objective(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, signs: np.ndarray, c: float) -> float:
    """Return the objective for one class: a literal sum over the rows."""
    hinges = [max(0.0, 1 - sign * (float(weight @ row) + bias)) ** 2 for row, sign in zip(x, signs, strict=True)]
    return float(weight @ weight + bias**2) / 2 + c * sum(hinges)


@pytest.mark.parametrize("index", [3, 4])
def test_the_order_of_summation_does_not_matter(index: int) -> None:
    """Processors round sums differently; so does another order of the rows. The objective is the same."""
    train, labels, _, num_classes = _problem(index)
    flat, signs = (
        train.reshape(-1, train.shape[2]).astype(np.float64),
        np.where(labels.repeat(train.shape[1]) == 0, 1, -1),
    )
    reference = LinearSVC(C=1.0, tol=1e-6, max_iter=100000, random_state=0).fit(flat, signs)
    least = _objective(reference.coef_[0], reference.intercept_[0], flat, signs, 1.0)
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(train))
        model = _fit(rows_of(train[order], labels[order]), c=1.0, standardise=False, num_classes=num_classes)
        assert _objective(model.weight[:, 0], model.bias[0], flat, signs, 1.0) <= least * (1 + 1e-4)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("c", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("index", range(len(PROBLEMS)))
def test_objective_and_scores_are_those_of_scikit_learn(index: int, c: float, standardise: bool) -> None:
    train, labels, test, num_classes = _problem(index)
    rows = rows_of(train, labels)
    model = _fit(rows, c=c, standardise=standardise, num_classes=num_classes)
    assert model.num_steps < MAX_ITERATIONS

    flat, repeated = train.reshape(-1, train.shape[2]).astype(np.float64), labels.repeat(train.shape[1])
    scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(flat)
    x = scaler.transform(flat)
    expected_scores = np.zeros((len(test), num_classes))
    table = model.start.reshape(-1, num_classes)  # for standardized features
    longest = np.sqrt(
        1 + max((scaler.transform(test[:, segment]) ** 2).sum(axis=1).max() for segment in range(test.shape[1]))
    )
    allowed = np.zeros(num_classes)
    for label in range(num_classes):
        signs = np.where(repeated == label, 1, -1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = LinearSVC(C=c, tol=1e-6, max_iter=100000, random_state=0).fit(x, signs)
        least = _objective(reference.coef_[0], reference.intercept_[0], x, signs, c)
        found = _objective(table[:-1, label], table[-1, label], x, signs, c)
        assert found <= least * (1 + 1e-4)
        # The objective is 1-strongly convex: weights are at most this far from the best, and scores that times a row.
        allowed[label] = np.sqrt(2 * max(0.0, found - least)) * longest
        for segment in range(test.shape[1]):
            expected_scores[:, label] += reference.decision_function(scaler.transform(test[:, segment]))
    expected_scores /= test.shape[1]
    scores = model.scores(rows_of(test, np.zeros(len(test), int)))
    # How close to the best single precision comes depends on the machine's matrix products.
    allowed = np.maximum(allowed, 5e-3 * max(1.0, np.abs(expected_scores).max()))
    assert (np.abs(scores - expected_scores) < allowed).all()


def test_rows_in_blocks_give_the_same_svm(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(40, spread=2.0)
    rows = rows_of(train, labels)
    whole = _fit(rows, c=0.1, standardise=True, num_classes=4)
    monkeypatch.setattr(feature_matrix, "BLOCK_BYTES", 3 * 3 * 16 * 4)  # 3 clips
    assert len(list(rows.blocks())) == 14
    in_blocks = _fit(rows, c=0.1, standardise=True, num_classes=4)
    assert np.allclose(in_blocks.weight, whole.weight, rtol=1e-2, atol=1e-3)
    assert np.allclose(in_blocks.scores(rows), whole.scores(rows), rtol=1e-2, atol=1e-3)


def test_another_start_ends_at_the_same_svm() -> None:
    train, labels = clusters(40, spread=2.0)
    rows = rows_of(train, labels)
    size = {"standardise": False, "num_classes": 4}
    first = _fit(rows, c=1e-3, **size)
    cold, warm = (_fit(rows, c=0.1, start=start, **size) for start in (None, first.start))
    assert np.allclose(cold.scores(rows), warm.scores(rows), atol=5e-3)


def test_scores_are_means_over_the_segments_of_a_linear_function() -> None:
    random = np.random.default_rng(0)
    test = random.normal(size=(5, 3, 4)).astype(np.float32)
    model = LinearSvm(random.normal(size=(4, 2)), random.normal(size=2), np.zeros(0))
    expected = [[np.mean([row @ model.weight[:, k] + model.bias[k] for row in clip]) for k in (0, 1)] for clip in test]
    assert np.allclose(model.scores(rows_of(test, np.zeros(5, int))), expected, atol=1e-5)


def test_a_fit_leaves_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(20, spread=1.0)
    monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGTERM")
    with pytest.raises(Preempted, match="SIGTERM"):
        _fit(rows_of(train, labels), c=0.1, standardise=True, num_classes=4)
