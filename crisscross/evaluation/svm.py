"""One-vs-all linear SVM on frozen features (PAPER section 5), C chosen inside the training split."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from crisscross.evaluation.memo import Memo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SvmResult:
    """What one SVM found.

    Attributes:
        scores: (N, K) decision values of the test clips, averaged over their segments.
        chosen_c: the C that cross-validation chose.
        validation_top1: its cross-validated top-1 on the training split; None when there was nothing to choose.
    """

    scores: np.ndarray
    chosen_c: float
    validation_top1: float | None


def evaluate_svm(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    num_classes: int,
    c_grid: tuple[float, ...],
    num_folds: int,
    seed: int,
    memo: Memo | None = None,
) -> SvmResult:
    """Fit on the training split and score the test split.

    Every segment of a training clip is a row; all segments of a clip stay in one fold, so that no clip validates
    itself. Features are standardised by the training rows (chosen by us).

    Args:
        train: (N, V, D) features.
        train_labels: (N,) class indices.
        test: (M, V, D) features.
        num_classes: K, also of classes that the training split lacks.
        c_grid: values of C to try; the smallest of equally good ones is taken.
        num_folds: folds of the cross-validation, fewer where a class is smaller.
        seed: of the folds and the solver.
        memo: where the accuracies of the cross-validation are kept; None = nowhere.

    Raises:
        Interrupted: by the memo, between two fits, when a signal asked the job to leave.
        ValueError: when the training split has fewer than two classes, or too few clips to choose C.
    """
    present, counts = np.unique(train_labels, return_counts=True)
    if len(present) < 2:
        raise ValueError(
            f"an SVM needs clips of 2 classes to train on, got {len(present)}: check the labels and the split"
        )
    folds = min(num_folds, int(counts.max()))
    accuracies = dict.fromkeys(sorted(c_grid), 0.0)
    if len(accuracies) > 1:
        if folds < 2:
            raise ValueError(
                "C cannot be chosen by cross-validation with one training clip a class:"
                " give one value (downstream.c_grid=[1e-3]) or more clips"
            )
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        clips = np.arange(len(train))
        for fold, (fit, held_out) in enumerate(splitter.split(clips, train_labels, groups=clips)):
            for c in accuracies:

                def accuracy(fit: np.ndarray = fit, held_out: np.ndarray = held_out, c: float = c) -> float:
                    model = _fit(train[fit], train_labels[fit], c=c, seed=seed)
                    scores = _scores(model, train[held_out], num_classes)
                    return top_k(scores, train_labels[held_out], 1)

                found = accuracy() if memo is None else memo.number(f"fold {fold}, C={c!r}", accuracy)
                accuracies[c] += found * len(held_out) / len(train)
    chosen = max(accuracies, key=lambda c: (accuracies[c], -c))
    validation_top1 = accuracies[chosen] if len(accuracies) > 1 else None
    model = _fit(train, train_labels, c=chosen, seed=seed)
    return SvmResult(_scores(model, test, num_classes), chosen, validation_top1)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of rows whose label is among the k highest scores.

    Ties go to the lower class index; a class with a score of -inf, which was not trained on, is never a hit.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    possible = np.isfinite(np.take_along_axis(scores, ranked, axis=1))
    return float(((ranked == labels[:, None]) & possible).any(axis=1).mean())


def _fit(features: np.ndarray, labels: np.ndarray, *, c: float, seed: int) -> Pipeline:
    segments = features.shape[1]
    model = make_pipeline(StandardScaler(), LinearSVC(C=c, random_state=seed, max_iter=5000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features.reshape(-1, features.shape[-1]), labels.repeat(segments))
    if any(issubclass(item.category, ConvergenceWarning) for item in caught):
        logger.warning("the SVM with C=%g did not converge in 5000 iterations; its scores are used as they are", c)
    return model


def _scores(model: Pipeline, features: np.ndarray, num_classes: int) -> np.ndarray:
    """Return decision values averaged over the segments, (N, K); -inf for classes that were not trained on."""
    values = model.decision_function(features.reshape(-1, features.shape[-1]))
    if values.ndim == 1:  # two classes: scikit-learn gives the second one's value alone
        values = np.stack([-values, values], axis=1)
    scores = np.full((len(features), num_classes), -np.inf)
    scores[:, model.classes_] = values.reshape(*features.shape[:2], -1).mean(axis=1)
    return scores
