"""A one-vs-all linear SVM for many rows, with scikit-learn LinearSVC's objective.

    for each class:   (|w|^2 + b^2) / 2  +  C sum over rows of max(0, 1 - y (w x + b))^2

SciPy's L-BFGS solves all classes at once. Its passes over the rows are matrix products, so rows may be on disk and
memory holds one block. LinearSVC's solver copies all rows twice, in double precision, and uses one core; on 4,000 rows
of 4,608 features and 50 classes it took 2 to 20 times as long, with the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.utils.signals import raise_if_preempted

MAX_ITERATIONS = 300  # ours
GRADIENT_TOLERANCE = 3e-5  # ours
"""Largest entry of the gradient at the end, as a fraction of that at zero weights."""
OBJECTIVE_TOLERANCE = 1e-7  # ours
"""Smallest relative decrease of the objective per step: the resolution of single precision."""
UNSTANDARDIZED = 0.01  # ours
"""Factor on ``OBJECTIVE_TOLERANCE`` without standardization; its root, on ``GRADIENT_TOLERANCE``.

Such objectives are often below 1, where SciPy's tolerance is absolute.
"""


@dataclass(frozen=True)
class LinearSvm:
    """A fitted SVM.

    Attributes:
        weight: (D, K) float64.
        bias: (K,) float64.
        start: the solution, from which a fit with another C can start.
        num_steps: steps of the solver; ``MAX_ITERATIONS`` if it did not converge.
    """

    weight: np.ndarray
    bias: np.ndarray
    start: np.ndarray
    num_steps: int = 0

    def scores(self, rows: FeatureMatrix) -> np.ndarray:
        """Return (n, K) float64 decision values, averaged over each clip's segments."""
        weight = self.weight.astype(np.float32)
        values = [block @ weight for block, _ in rows.blocks()]
        return np.concatenate(values).reshape(len(rows.clips), rows.num_segments, -1).mean(axis=1, dtype=np.float64) + (
            self.bias
        )


def fit_svm(
    rows: FeatureMatrix,
    *,
    num_classes: int,
    c: float,
    moments: tuple[np.ndarray, np.ndarray] | None,
    device: torch.device,
    start: np.ndarray | None = None,
) -> LinearSvm:
    """Fit one SVM per class, all at once.

    Args:
        rows: the training rows.
        num_classes: K.
        c: weight of the hinge; larger = less regularized.
        moments: mean and standard deviation, (D,) each, to standardize the features with; None = no standardization.
        device: where blocks of rows are multiplied.
        start: ``LinearSvm.start`` of another fit on the same rows; None = zeros.

    Raises:
        Preempted: if a signal asked the job to stop.
    """
    objective = _Objective(rows, num_classes, c, moments, device)
    scale = (np.ones(rows.dim + 1) if moments else _step_sizes(rows, c)).repeat(num_classes)
    strictness = 1.0 if moments else UNSTANDARDIZED

    def scaled(unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(unknowns * scale)
        return value, gradient * scale

    zero = np.zeros(len(scale))
    steepest = np.abs(scaled(zero)[1]).max()
    found = minimize(
        scaled,
        zero if start is None else start / scale,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "gtol": GRADIENT_TOLERANCE * strictness**0.5 * steepest,
            "ftol": OBJECTIVE_TOLERANCE * strictness,
        },
    )
    solution = found.x * scale
    weight, bias = objective.as_features_are(solution)
    return LinearSvm(weight, bias, solution, found.nit)


def _step_sizes(rows: FeatureMatrix, c: float) -> np.ndarray:
    """Return a scale for each of the D weights and the bias.

    In these units the curvature of the objective is about the same in every direction. Without them, features of
    different sizes need more steps than ``MAX_ITERATIONS``.
    """
    mean, std = rows.moments()
    curvature = 2 * c * len(rows) * np.append(mean**2 + std**2, 1.0)
    return 1 / np.sqrt(1 + curvature)


class _Objective:
    """The objective and its gradient, as a function of the unknowns.

    The unknowns are (D + 1, K), flattened, for standardized features; the last row is the bias.
    """

    def __init__(
        self,
        rows: FeatureMatrix,
        num_classes: int,
        c: float,
        moments: tuple[np.ndarray, np.ndarray] | None,
        device: torch.device,
    ) -> None:
        self._rows, self._num_classes, self._c, self._device = rows, num_classes, c, device
        mean, std = moments or (np.zeros(rows.dim), np.ones(rows.dim))
        self._mean, self._std = mean[:, None], std[:, None]

    def __call__(self, unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        raise_if_preempted()
        weight, bias = (torch.from_numpy(x).float().to(self._device) for x in self.as_features_are(unknowns))
        hinge, by_bias = 0.0, np.zeros(self._num_classes)
        by_weight = np.zeros(self._mean.shape * np.array([1, self._num_classes]))
        for block, labels in self._rows.blocks():
            x = torch.from_numpy(block).to(self._device)
            signs = torch.full((len(x), self._num_classes), -1.0, device=self._device)
            signs[torch.arange(len(x)), torch.from_numpy(labels)] = 1.0
            slack = (1 - signs * (x @ weight + bias)).clamp_(min=0)
            hinge += slack.double().square().sum().item()
            pull = signs * slack
            by_weight += (x.T @ pull).double().cpu().numpy()
            by_bias += pull.double().sum(dim=0).cpu().numpy()
        by_weight = (by_weight - self._mean * by_bias) / self._std
        gradient = unknowns - 2 * self._c * np.concatenate([by_weight, by_bias[None]]).reshape(-1)
        return self._c * hinge + unknowns @ unknowns / 2, gradient

    def as_features_are(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (D, K) weights and (K,) biases for unstandardized features."""
        table = unknowns.reshape(-1, self._num_classes)
        weight = table[:-1] / self._std
        return weight, table[-1] - (self._mean * weight).sum(axis=0)
