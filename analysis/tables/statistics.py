"""How sure a number is: over seeds, and of a difference between two that share their seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One result less another, seed by seed.

    Attributes:
        mean: of the differences of the seeds that both have.
        half_width: of its 95 % confidence interval by a paired t-test; None for fewer than two seeds.
        p: of the same test: how likely so large a difference is where there is none; None for fewer than two seeds.
        n: seeds that both have.
    """

    mean: float
    half_width: float | None
    p: float | None
    n: int

    @property
    def text(self) -> str:
        """As it stands in a cell, in points of percent."""
        if self.half_width is None:
            return f"{100 * self.mean:+.1f} (n=1)"
        return f"{100 * self.mean:+.1f} ± {100 * self.half_width:.1f} (n={self.n}, p={self.p:.2g})"


def difference(minuend: Mapping[int, float], subtrahend: Mapping[int, float]) -> Difference | None:
    """Return one set of numbers by seed less another, paired by seed; None where they share no seed."""
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
