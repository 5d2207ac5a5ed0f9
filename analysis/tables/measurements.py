"""Results of a study: one series per pretraining and evaluation, over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.runs import BY_TEST, StudyRuns, reason_missing

PRETRAINING = ("point", "method", "relaxation", "pretrain_data", "pretrain_family")

EVALUATION = (
    *("scale", "backbone", "downstream_data", "protocol", "frames", "segments", "distance", "family", "epoch"),
)

KEY = (*PRETRAINING, *EVALUATION)
"""Columns that all runs of a series share."""

RANDOM_INIT = "untrained"
"""Value of ``method`` of the random-init baseline."""


@dataclass(frozen=True)
class Series:
    """One quantity over seeds.

    Attributes:
        point: its values on the axes of the study, as texts; empty for random-init backbones.
        facts: the columns of the frame that its runs share (``KEY``).
        column: the evaluation, modality and measure.
        result: its numbers by seed.
    """

    point: Mapping[str, str]
    facts: Mapping[str, str]
    column: Column
    result: Result

    @property
    def is_random_init(self) -> bool:
        """Whether the backbones are random-init."""
        return self.facts["method"] == RANDOM_INIT

    def of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return some of its facts."""
        return tuple(self.facts[name] for name in names)


def series_of(runs: StudyRuns) -> list[Series]:
    """Return all series of a study in a reproducible order.

    Evaluations along a pretraining (``weights.epoch``) are included, with ``facts["epoch"]``.
    """
    evaluations, seeds = runs.evaluations, seeds_of(runs)
    found = []
    for values, group in sorted(evaluations.groupby(list(KEY)), key=lambda item: [_natural(text) for text in item[0]]):
        facts = dict(zip(KEY, map(str, values), strict=True))
        above = matching(runs.pretrainings, {name: facts[name] for name in PRETRAINING})
        ours = sorted(set(map(int, group["seed"]))) if facts["method"] == RANDOM_INIT else seeds
        for column in columns_of(facts, facts["downstream_data"], group):
            result = result_of(column, group, above, seeds=ours)
            found.append(Series(_point(facts["point"]), facts, column, result))
    return found


def gaps_of(
    runs: StudyRuns, series: Sequence[Series], kinds: Iterable[Mapping[str, str]], *, apart: Sequence[str]
) -> list[Series]:
    """Return series without numbers for pretrainings and evaluations without runs.

    Args:
        runs: the study.
        series: the existing series; the facts of an evaluation come from them.
        kinds: facts (some of ``PRETRAINING``) of pretrainings that should have every evaluation.
        apart: facts, some of ``KEY``, that distinguish evaluations.
    """
    trained = [one for one in series if not one.is_random_init]
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
    """Return the facts of each kind of pretraining without a recorded evaluation."""
    covered = {one.of(PRETRAINING) for one in series}
    listed = runs.pretrainings[list(PRETRAINING)].itertuples(index=False, name=None)
    return [dict(zip(PRETRAINING, values, strict=True)) for values in sorted(set(listed) - covered)]


def seeds_of(runs: StudyRuns) -> list[int]:
    """Return the seeds that every trained series should have."""
    trained = runs.evaluations[runs.evaluations["method"] != RANDOM_INIT]
    return sorted({*map(int, trained["seed"]), *map(int, runs.pretrainings["seed"])}) or [0]


def matching(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of a frame with these values.

    Args:
        frame: any frame with string columns.
        wanted: value by column.
    """
    for name, text in wanted.items():
        frame = frame[frame[name] == text]
    return frame


def _natural(text: str) -> tuple[int, int, str]:
    """Return a sort key: numbers by value, before other texts."""
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _point(text: str) -> dict[str, str]:
    return {axis: str(value) for axis, value in (json.loads(text) if text.startswith("{") else {}).items()}


MODALITIES = {"v": "v", "a": "a", "av": "a+v"}

PROTOCOLS = {
    "svm": "a one-vs-all linear SVM on frozen features",
    f"svm{BY_TEST}": "a one-vs-all linear SVM on frozen features whose C was chosen on the test split",
    "linear": "a linear layer on frozen features",
    "finetune": "fine-tuning the video network",
    "retrieval": "nearest neighbours of frozen features (R@k: a training clip of the class is among the k nearest)",
}
"""Text of a protocol in a caption, by ``protocol`` of the frame."""

ONE_FOLD_AN_EXPERIMENT = ("finetune",)


@dataclass(frozen=True)
class Column:
    """One measure of one evaluation.

    Attributes:
        key: the columns of the frame that its results share.
        group: the heading above, such as the dataset.
        modality: ``v``, ``a`` or ``av``.
        measure: the metric's name without ``eval/`` and the modality: ``top1``, ``recall_at_5``.
        folds: folds of the dataset that a number is the mean of; empty if it has none.
    """

    key: Mapping[str, str]
    group: str
    modality: str
    measure: str
    folds: tuple[int, ...]

    @property
    def metric(self) -> str:
        """The metric's name."""
        return f"eval/{self.measure}_{self.modality}"

    @property
    def label(self) -> str:
        """The heading."""
        rank = self.measure.removeprefix("recall_at_")
        return MODALITIES[self.modality] + (f" R@{rank}" if rank != self.measure else "")

    @property
    def parts(self) -> tuple[int | None, ...]:
        """Folds, one per experiment; None for an experiment with all folds."""
        return self.folds if self.folds and self.key["protocol"] in ONE_FOLD_AN_EXPERIMENT else (None,)


@dataclass(frozen=True)
class Gap:
    """Why a seed has no number.

    Attributes:
        reason: a few words for a cell.
        error: error message of a failed run; else empty.
        partial: mean of the finished folds; None if no fold is finished.
    """

    reason: str
    error: str
    partial: float | None = None

    @property
    def text(self) -> str:
        """The reason with the error message and the partial mean."""
        known = "" if self.partial is None else f" (the mean of those that are done: {100 * self.partial:.1f})"
        return f"{self.reason}{f': {self.error}' if self.error else ''}{known}"


@dataclass(frozen=True)
class Result:
    """Numbers of one cell, and the seeds without one.

    Attributes:
        values: numbers by seed, each the mean over the folds, so that the deviation is over seeds alone.
        run_ids: MLflow runs of the numbers.
        missing: reasons by seed, for seeds without a number.
    """

    values: dict[int, float]
    run_ids: tuple[str, ...]
    missing: dict[int, Gap]

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without seeds."""
        return sum(self.values.values()) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        mean = self.mean
        if mean is None or len(self.values) < 2:
            return None
        squares = sum((value - mean) ** 2 for value in self.values.values())
        return (squares / (len(self.values) - 1)) ** 0.5

    @property
    def printed_mean(self) -> str:
        """The mean in percent, as a cell prints it."""
        return "" if self.mean is None else f"{100 * self.mean:.1f}"

    @property
    def text(self) -> str:
        """Text of a cell: mean and deviation, or the reason without them."""
        if self.mean is None:
            return self.reason or "not run"
        spread = "" if self.std is None else f" ± {100 * self.std:.1f} (n={len(self.values)})"
        return self.printed_mean + spread

    @property
    def reason(self) -> str:
        """Why there is no number; empty if there is one."""
        reasons = dict.fromkeys(gap.reason for gap in self.missing.values()) if not self.values else {}
        return ("; " if any(":" in reason for reason in reasons) else ", ").join(reasons)


def columns_of(key: Mapping[str, str], group: str, evaluations: pd.DataFrame) -> list[Column]:
    """Return the columns of one evaluation.

    Args:
        key: the columns of the frame that its results share.
        group: the heading above.
        evaluations: its rows, for every pretraining, finished or not.
    """
    modalities = {modality for listed in evaluations["modalities"] for modality in listed}
    ranks = sorted({rank for ranks in evaluations["ranks"] for rank in ranks})
    folds = tuple(sorted({fold for folds in evaluations["folds"] for fold in folds}))
    measures = [f"recall_at_{rank}" for rank in ranks] if key["protocol"] == "retrieval" else ["top1"]
    return [
        Column(key, group, modality, measure, folds)
        for modality in MODALITIES
        if modality in modalities or not modalities
        for measure in measures
    ]


def result_of(column: Column, found: pd.DataFrame, pretrainings: pd.DataFrame, *, seeds: Iterable[int]) -> Result:
    """Return the numbers of one cell, and why others are missing.

    Args:
        column: column of the cell.
        found: the evaluations of its row and column.
        pretrainings: the pretrainings that they evaluate, if any.
        seeds: seeds that should have a number.
    """
    values: dict[int, float] = {}
    run_ids: list[str] = []
    missing: dict[int, Gap] = {}
    for seed in seeds:
        of_seed, above = found[found["seed"] == seed], _first(pretrainings[pretrainings["seed"] == seed])
        numbers: dict[int | None, float] = {}
        gaps: dict[int | None, Gap] = {}
        ids: list[str] = []
        for part in column.parts:
            rows = of_seed if part is None else _of_fold(of_seed, part)
            done = rows[rows["status"] == "FINISHED"]
            if column.metric in done and done[column.metric].notna().any():
                done = done[done[column.metric].notna()]
                # Several rows only if one pretraining was evaluated with several seeds: their mean is one number.
                numbers[part] = float(done[column.metric].mean())
                ids += list(done["run_id"])
            else:
                gaps[part] = Gap(*reason_missing(_first(rows), above))
        if gaps:
            missing[seed] = _gap(gaps, list(numbers.values()))
        else:
            values[seed] = sum(numbers.values()) / len(numbers)
            run_ids += ids
    return Result(values, tuple(run_ids), missing)


def _gap(gaps: Mapping[int | None, Gap], numbers: Sequence[float]) -> Gap:
    """Return missing folds with reasons: ``2 of 3 folds: fold 3 running``."""
    errors = "; ".join(dict.fromkeys(gap.error for gap in gaps.values() if gap.error))
    by_reason: dict[str, list[int | None]] = {}
    for fold, gap in gaps.items():
        by_reason.setdefault(gap.reason, []).append(fold)
    if not numbers and len(by_reason) == 1:
        (reason,) = by_reason
        return Gap(reason, errors)
    each = [
        f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))} {reason}"
        for reason, folds in by_reason.items()
    ]
    partial = sum(numbers) / len(numbers) if numbers else None
    return Gap(f"{len(numbers)} of {len(numbers) + len(gaps)} folds: {', '.join(each)}", errors, partial)


def _of_fold(frame: pd.DataFrame, fold: int) -> pd.DataFrame:
    return frame[frame["folds"].map(lambda folds: fold in folds).astype(bool)]


def _first(frame: pd.DataFrame) -> dict[str, Any] | None:
    return frame.iloc[0].to_dict() if len(frame) else None
