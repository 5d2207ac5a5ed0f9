"""What a study measured: one series for each evaluation of each kind of pretraining, over seeds and folds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.runs import StudyRuns
from analysis.tables.results import Column, Result, columns_of, result_of

if TYPE_CHECKING:
    import pandas as pd

PRETRAINING = ("point", "method", "relaxation", "pretrain_data", "pretrain_family")
EVALUATION = (
    *("scale", "backbone", "downstream_data", "protocol", "frames", "segments", "distance", "family", "epoch"),
)
KEY = (*PRETRAINING, *EVALUATION)
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

    def of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return some of its facts."""
        return tuple(self.facts[name] for name in names)


def series_of(runs: StudyRuns) -> list[Series]:
    """Return all series of a study, in an order that does not depend on that of the runs.

    Those along a pretraining (``weights.epoch``) are among them: ``facts["epoch"]`` tells.
    """
    evaluations, seeds = runs.evaluations, seeds_of(runs)
    found = []
    for values, group in sorted(evaluations.groupby(list(KEY)), key=lambda item: [_natural(text) for text in item[0]]):
        facts = dict(zip(KEY, map(str, values), strict=True))
        above = matching(runs.pretrainings, {name: facts[name] for name in PRETRAINING})
        ours = sorted(set(map(int, group["seed"]))) if facts["method"] == FLOOR else seeds
        for column in columns_of(facts, facts["downstream_data"], group):
            result = result_of(column, group, above, seeds=ours)
            found.append(Series(_point(facts["point"]), facts, column, result))
    return found


def gaps_of(
    runs: StudyRuns, series: Sequence[Series], kinds: Iterable[Mapping[str, str]], *, apart: Sequence[str]
) -> list[Series]:
    """Return series without a number, one for each kind of pretraining and each evaluation it has no run of at all.

    Args:
        runs: the study.
        series: those that there are; what is said of an evaluation is taken from them.
        kinds: facts (some of ``PRETRAINING``) of pretrainings that should have every evaluation.
        apart: facts, some of ``KEY``, by which evaluations are told apart.
    """
    trained = [one for one in series if not one.is_floor]
    evaluations = {(one.of(apart), one.column.metric): one for one in reversed(trained)}
    found = []
    for kind in kinds:
        there = {(one.of(apart), one.column.metric) for one in trained if one.of(kind) == tuple(kind.values())}
        for key, one in reversed(evaluations.items()):
            if key in there:
                continue
            known = {name: one.facts[name] for name in ("method", "pretrain_family")}
            above = matching(runs.pretrainings, {**known, **kind})
            facts = {**one.facts, **kind}
            if len(above):
                facts |= {"point": above["point"].iloc[0], "backbone": above["backbone"].iloc[0]}
            result = result_of(one.column, runs.evaluations[:0], above, seeds=seeds_of(runs))
            found.append(Series(_point(facts["point"]), facts, one.column, result))
    return found


def unevaluated(runs: StudyRuns, series: Sequence[Series]) -> list[dict[str, str]]:
    """Return the facts of each kind of pretraining that has no evaluation in the record yet."""
    covered = {one.of(PRETRAINING) for one in series}
    listed = runs.pretrainings[list(PRETRAINING)].itertuples(index=False, name=None)
    return [dict(zip(PRETRAINING, values, strict=True)) for values in sorted(set(listed) - covered)]


def seeds_of(runs: StudyRuns) -> list[int]:
    """Return the seeds that everything trained should have a number of."""
    learnt = runs.evaluations[runs.evaluations["method"] != FLOOR]
    return sorted({*map(int, learnt["seed"]), *map(int, runs.pretrainings["seed"])}) or [0]


def matching(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of a frame that have these texts."""
    for name, text in wanted.items():
        frame = frame[frame[name] == text]
    return frame


def _natural(text: str) -> tuple[int, int, str]:
    """Sort numbers by what they are worth, before other texts."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _point(text: str) -> dict[str, str]:
    return {axis: str(value) for axis, value in (json.loads(text) if text.startswith("{") else {}).items()}
