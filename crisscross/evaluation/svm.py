"""The SVM protocol (as in the paper) and its choice of C."""

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
from crisscross.evaluation.linear_svm import MAX_ITERATIONS, LinearSvm, fit_svm
from crisscross.evaluation.scores import all_classes, top_k

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
NUM_NAMED = 5  # ours: classes that a warning names


@dataclass(frozen=True)
class SvmResult:
    """The result of one SVM.

    Attributes:
        scores: (N, K) decision values of the test clips, averaged over their segments.
        chosen_c: the chosen C.
        validation_top1: its cross-validated top-1 on the training split; None if there was only one C, or if C was
            chosen on the test split.
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
    cache: JsonCache | None = None,
) -> SvmResult:
    """Fit on the training split and score the test split.

    Each segment of a training clip is a row. In the cross-validation, all segments of a clip, and all clips of a source
    video, stay in one fold. The chosen C has the best cross-validated accuracy on the training split or, with
    ``select=test``, the best accuracy on the test split (released). Of equally good ones, the smallest is chosen.

    Args:
        train: the training clips.
        test: the test clips.
        num_classes: K, including classes that the training split lacks.
        settings: the protocol.
        seed: of the folds of the cross-validation.
        groups: the official fold of each training clip; the cross-validation then leaves out one fold at a time.
        sources: the video that each training clip was cut from; the cross-validation then holds out whole videos, and
            ignores ``groups``.
        class_names: names of all classes, for warnings.
        device: where to compute.
        cache: stores the hits of the search for C; None = no file.

    Raises:
        Preempted: if a signal asked the job to stop.
        ValueError: if the training split has fewer than two classes, or too few clips to choose C.
    """
    present = np.unique(train.labels)
    if len(present) < 2:
        raise ValueError(
            f"an SVM needs training clips of 2 classes, got {len(present)}: check the labels and the split"
        )
    fitter = _Fitter(num_classes, present, standardize=settings.standardise, device=device)
    hits = dict.fromkeys(sorted(settings.c_grid), 0)
    chosen, validation_top1 = min(hits), None
    if len(hits) > 1 and settings.select == "test":
        for c, model in fitter.path(train, hits):
            hits[c] = _hits(fitter.scores(model, test), test.labels)
        chosen = _best(hits)
    elif len(hits) > 1:
        with warnings.catch_warnings():  # ``_warn_of_small_classes`` replaces scikit-learn's
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            splits = list(
                validation_splits(train.labels, settings.num_folds, groups=groups, sources=sources, seed=seed)
            )
        _warn_of_small_classes(train.labels, [held_out for _, held_out in splits], class_names)
        for number, (fit, held_out) in enumerate(splits):

            def search(fit: np.ndarray = fit, held_out: np.ndarray = held_out) -> list[int]:
                return _held_out_hits(fitter, train, fit, held_out, settings)

            name = f"hits of fold {number}" if sources is None else f"hits of fold {number} by source"
            found = (cache or JsonCache()).value(name, search)
            for c, count in zip(hits, found, strict=True):
                hits[c] += count
        chosen = _best(hits)
        validation_top1 = hits[chosen] / len(train.clips)
    ((_, model),) = fitter.path(train, [chosen])
    if model.num_steps >= MAX_ITERATIONS:
        logger.warning(
            "the SVM with C=%g did not converge in %d steps; its scores are used as they are", chosen, model.num_steps
        )
    return SvmResult(fitter.scores(model, test), chosen, validation_top1)


def _warn_of_small_classes(labels: np.ndarray, folds: Sequence[np.ndarray], class_names: Sequence[str]) -> None:
    """Warn of classes that some folds of the search for C lack."""
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
    """Return the smallest C with the most hits."""
    return max(hits, key=lambda c: (hits[c], -c))  # hits are whole numbers: ties are exact


def _hits(scores: np.ndarray, labels: np.ndarray) -> int:
    return round(top_k(scores, labels, 1) * len(labels))


def validation_splits(
    labels: np.ndarray, num_folds: int, *, groups: np.ndarray | None, sources: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training and validation indices of each fold.

    Args:
        labels: (n,) class indices of the training clips.
        num_folds: number of folds; at most the source videos, or clips, of the largest class.
        groups: as in ``evaluate_svm``.
        sources: as in ``evaluate_svm``.
        seed: of folds that are not official.

    Raises:
        ValueError: if no class has two source videos, or two clips.
    """
    # takes a second to import, which only a search for C needs
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    clips = np.arange(len(labels))
    if sources is None and groups is not None and len(np.unique(groups)) > 1:
        return LeaveOneGroupOut().split(clips, labels, groups=groups)
    together = clips if sources is None else np.unique(sources, return_inverse=True)[1]
    num_folds = min(num_folds, max(len(np.unique(together[labels == label])) for label in np.unique(labels)))
    if num_folds < 2:
        what = "training clip" if sources is None else "source video"
        raise ValueError(
            f"C cannot be chosen by cross-validation with one {what} per class:"
            f" give one value (downstream.c_grid=[1e-3]) or more {what.split()[1]}s"
        )
    return StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(clips, labels, groups=together)


def _held_out_hits(
    fitter: _Fitter, train: FeatureMatrix, fit: np.ndarray, held_out: np.ndarray, settings: SvmSettings
) -> list[int]:
    """Return the hits of each C, ascending, among held-out clips."""
    rows = train.some(fit, num_segments=settings.search_segments)
    validation = train.some(held_out, num_segments=settings.search_segments)
    models = fitter.path(rows, settings.c_grid)
    return [_hits(fitter.scores(model, validation), validation.labels) for _, model in models]


class _Fitter:
    """SVM fits for ascending C, each starting at the previous solution."""

    def __init__(self, num_classes: int, present: np.ndarray, *, standardize: bool, device: torch.device) -> None:
        self._num_classes, self._present = num_classes, present
        self._standardize, self._device = standardize, device

    def path(self, rows: FeatureMatrix, grid: Iterable[float]) -> Iterator[tuple[float, LinearSvm]]:
        """Yield (C, SVM) for ascending C."""
        rows = FeatureMatrix(rows.arrays, rows.clips, np.searchsorted(self._present, rows.labels), rows.num_segments)
        moments = rows.moments() if self._standardize else None
        start = None
        for c in sorted(grid):
            model = fit_svm(
                rows, num_classes=len(self._present), c=c, moments=moments, device=self._device, start=start
            )
            start = model.start
            yield c, model

    def scores(self, model: LinearSvm, rows: FeatureMatrix) -> np.ndarray:
        """Return (n, K) decision values; -inf for classes without training clips."""
        return all_classes(model.scores(rows), self._present, num_classes=self._num_classes)
