"""The SVM protocol (PAPER section 5): one-vs-all linear SVMs on frozen features, C chosen inside the training split."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from crisscross.config.evaluation import SvmSettings
from crisscross.evaluation.cache import JsonCache
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.linear_svm import LinearSvm, fit_svm
from crisscross.evaluation.scores import all_classes, top_k

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
NUM_NAMED = 5  # how many classes a warning names


@dataclass(frozen=True)
class SvmResult:
    """What one SVM found.

    Attributes:
        scores: (N, K) decision values of the test clips, averaged over their segments.
        chosen_c: the C that was chosen.
        validation_top1: its cross-validated top-1 on the training split; None when there was nothing to choose, or
            when the test split chose.
    """

    scores: np.ndarray
    chosen_c: float
    validation_top1: float | None


def evaluate_svm(
    train: FeatureMatrix,
    test: FeatureMatrix,
    *,
    num_classes: int,
    settings: SvmSettings,
    seed: int,
    groups: np.ndarray | None = None,
    sources: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    device: torch.device = CPU,
    memo: JsonCache | None = None,
) -> SvmResult:
    """Fit on the training split and score the test split.

    Every segment of a training clip is a row; all segments of a clip stay in one fold, and so do all clips of a source
    video, so that none validates itself. C is the one with the best cross-validated accuracy on the training split, the
    smallest of equally good ones; with ``select=test``, as in the release, the one that is best on the test split.

    Args:
        train: the training clips.
        test: the test clips.
        num_classes: K, also of classes that the training split lacks.
        settings: the protocol.
        seed: of the cross-validation's folds.
        groups: the official fold of every training clip; the cross-validation then leaves out one fold at a time.
        sources: the video that every training clip was cut from; the cross-validation then holds out whole videos, in
            folds of its own, whatever ``groups`` says.
        class_names: of all classes, for warnings.
        device: where to compute.
        memo: where the hits of the search are kept; None = nowhere.

    Raises:
        Interrupted: when a signal asked the job to leave.
        ValueError: when the training split has fewer than two classes, or too few clips to choose C.
    """
    present = np.unique(train.labels)
    if len(present) < 2:
        raise ValueError(
            f"an SVM needs clips of 2 classes to train on, got {len(present)}: check the labels and the split"
        )
    fitter = _Fitter(num_classes, present, standardise=settings.standardise, device=device)
    hits = dict.fromkeys(sorted(settings.c_grid), 0)
    chosen, validation_top1 = min(hits), None
    if len(hits) > 1 and settings.select == "test":
        for c, model in fitter.path(train, hits):
            hits[c] = _hits(fitter.scores(model, test), test.labels)
        chosen = _best(hits)
    elif len(hits) > 1:
        with warnings.catch_warnings():  # what scikit-learn says of small classes, ``_note_small_classes`` says better
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            splits = list(
                validation_splits(train.labels, settings.num_folds, groups=groups, sources=sources, seed=seed)
            )
        _note_small_classes(train.labels, [held_out for _, held_out in splits], class_names)
        for number, (fit, held_out) in enumerate(splits):

            def search(fit: np.ndarray = fit, held_out: np.ndarray = held_out) -> list[int]:
                return _held_out_hits(fitter, train, fit, held_out, settings)

            kept_as = f"hits of fold {number}" if sources is None else f"hits of fold {number} by source"
            found = (memo or JsonCache()).value(kept_as, search)
            for c, count in zip(hits, found, strict=True):
                hits[c] += count
        chosen = _best(hits)
        validation_top1 = hits[chosen] / len(train.clips)
    ((_, model),) = fitter.path(train, [chosen])
    return SvmResult(fitter.scores(model, test), chosen, validation_top1)


def _note_small_classes(labels: np.ndarray, folds: Sequence[np.ndarray], class_names: Sequence[str]) -> None:
    """Warn of classes that have no clips in some folds of the search for C."""
    counts = Counter(labels.tolist())
    in_every = set.intersection(*(set(labels[held_out].tolist()) for held_out in folds))
    names = class_names or range(max(counts) + 1)
    small = [f"{names[label]} ({counts[label]})" for label in sorted({*counts} - in_every)]
    if small:
        more = f" and {len(small) - NUM_NAMED} more" if len(small) > NUM_NAMED else ""
        logger.warning(
            "C is chosen by %d folds, not all of which have training clips of %s%s: add clips of these classes, lower"
            " downstream.num_folds, or choose C yourself (downstream.c_grid=[1e-3])",
            len(folds),
            ", ".join(small[:NUM_NAMED]),
            more,
        )


def _best(hits: dict[float, int]) -> float:
    """Return the C with the most hits, whole numbers: rounding must not tell equally good ones apart."""
    return max(hits, key=lambda c: (hits[c], -c))


def _hits(scores: np.ndarray, labels: np.ndarray) -> int:
    return round(top_k(scores, labels, 1) * len(labels))


def validation_splits(
    labels: np.ndarray, num_folds: int, *, groups: np.ndarray | None, sources: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what a search for C learns from and what it validates on, places of clips.

    Args:
        labels: (n,) of the training clips.
        num_folds: at most so many; no more than the source videos, or clips, of the class with the most.
        groups: as of ``evaluate_svm``: left out one at a time.
        sources: likewise: held out whole.
        seed: of folds that are not official.

    Raises:
        ValueError: no class has two of them.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold  # a second, for a search alone

    clips = np.arange(len(labels))
    if sources is None and groups is not None and len(np.unique(groups)) > 1:
        return LeaveOneGroupOut().split(clips, labels, groups=groups)
    together = clips if sources is None else np.unique(sources, return_inverse=True)[1]
    num_folds = min(num_folds, max(len(np.unique(together[labels == label])) for label in np.unique(labels)))
    if num_folds < 2:
        what = "training clip" if sources is None else "source video"
        raise ValueError(
            f"C cannot be chosen by cross-validation with one {what} a class:"
            f" give one value (downstream.c_grid=[1e-3]) or more {what.split()[1]}s"
        )
    return StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(clips, labels, groups=together)


def _held_out_hits(
    fitter: _Fitter, train: FeatureMatrix, fit: np.ndarray, held_out: np.ndarray, settings: SvmSettings
) -> list[int]:
    """Return the hits of every C, ascending, among the clips that one fold holds out."""
    rows = train.some(fit, num_segments=settings.search_segments)
    validation = train.some(held_out, num_segments=settings.search_segments)
    models = fitter.path(rows, settings.c_grid)
    return [_hits(fitter.scores(model, validation), validation.labels) for _, model in models]


class _Fitter:
    """Fits SVMs with one C after the other, each from where the last one ended."""

    def __init__(self, num_classes: int, present: np.ndarray, *, standardise: bool, device: torch.device) -> None:
        self._num_classes, self._present = num_classes, present
        self._standardise, self._device = standardise, device

    def path(self, rows: FeatureMatrix, grid: Iterable[float]) -> Iterator[tuple[float, LinearSvm]]:
        """Yield (C, SVM) for ascending C."""
        rows = FeatureMatrix(rows.arrays, rows.clips, np.searchsorted(self._present, rows.labels), rows.num_segments)
        moments = rows.moments() if self._standardise else None
        start = None
        for c in sorted(grid):
            model = fit_svm(
                rows, num_classes=len(self._present), c=c, moments=moments, device=self._device, start=start
            )
            start = model.start
            yield c, model

    def scores(self, model: LinearSvm, rows: FeatureMatrix) -> np.ndarray:
        """Return (n, K) decision values; -inf for classes that were not trained on."""
        return all_classes(model.scores(rows), self._present, num_classes=self._num_classes)
