"""Paired differences over seeds, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One result less another, paired by seed.

    Attributes:
        mean: mean difference over the common seeds.
        half_width: half width of its 95 % confidence interval by a paired t-test; None for fewer than two seeds.
        p: p-value of the same test; None for fewer than two seeds.
        n: number of common seeds.
    """

    mean: float
    half_width: float | None
    p: float | None
    n: int

    @property
    def text(self) -> str:
        """Text of a cell, in percentage points."""
        if self.half_width is None:
            return f"{100 * self.mean:+.1f} (n=1)"
        return f"{100 * self.mean:+.1f} ± {100 * self.half_width:.1f} (n={self.n}, p={self.p:.2g})"


def difference(minuend: Mapping[int, float], subtrahend: Mapping[int, float]) -> Difference | None:
    """Return one set of numbers less another, paired by seed.

    Args:
        minuend: numbers by seed.
        subtrahend: numbers by seed.

    Returns:
        The difference; None if they share no seed.
    """
    seeds = sorted(set(minuend) & set(subtrahend))
    if not seeds:
        return None
    values = [minuend[seed] - subtrahend[seed] for seed in seeds]
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return Difference(mean, None, None, n)
    error = stats.sem(values)
    if error == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0, n)
    half_width = float(error * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(mean, half_width, float(stats.ttest_1samp(values, 0.0).pvalue), n)
