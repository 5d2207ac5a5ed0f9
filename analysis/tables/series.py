"""What a study measured: one series for each evaluation of each kind of pretraining, over seeds and folds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.runs import StudyRuns
from analysis.tables.results import Column, Result, columns_of, result_of

KEY = (
    *("point", "method", "scale", "pretrain_data", "pretrain_family", "backbone"),
    *("downstream_data", "protocol", "frames", "segments", "distance", "family", "epoch"),
)
"""What the runs of a series have in common."""
FLOOR = "untrained"


@dataclass(frozen=True)
class Series:
    """One quantity.

    Attributes:
        point: where it stands on the axes of its study, as texts; empty for untrained backbones.
        facts: what its runs have in common, by column of the frame (``KEY``).
        column: the evaluation, modality and measure.
        result: its numbers by seed.
    """

    point: Mapping[str, str]
    facts: Mapping[str, str]
    column: Column
    result: Result

    @property
    def is_floor(self) -> bool:
        """Whether untrained backbones were evaluated."""
        return self.facts["method"] == FLOOR


def series_of(runs: StudyRuns) -> list[Series]:
    """Return all series of a study, in an order that does not depend on that of the runs.

    Those along a pretraining (``weights.epoch``) are among them: ``facts["epoch"]`` tells.
    """
    evaluations, seeds = runs.evaluations, sorted(set(map(int, runs.pretrainings["seed"]))) or [0]
    found = []
    for values, group in evaluations.groupby(list(KEY), sort=True):
        facts = dict(zip(KEY, map(str, values), strict=True))
        above = runs.pretrainings[runs.pretrainings["identity"].isin(group["parent_identity"])]
        ours = sorted(set(map(int, group["seed"]))) if facts["method"] == FLOOR else seeds
        for column in columns_of(facts, facts["downstream_data"], group):
            result = result_of(column, group, above, seeds=ours)
            found.append(Series(_point(facts["point"]), facts, column, result))
    return found


def _point(text: str) -> dict[str, str]:
    return {axis: str(value) for axis, value in (json.loads(text) if text.startswith("{") else {}).items()}
