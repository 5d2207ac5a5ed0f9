"""A table whose cells are series: measured numbers, published ones beside them in columns of their own, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.runs import StudyRuns
from analysis.tables.base import Cell, Row, Table
from analysis.tables.captions import about_of, notes_of, reading_help
from analysis.tables.placing import Heading, Place, Placed, Rules, grouped, in_order, place_all
from analysis.tables.series import Series
from analysis.tables.spread import Difference, difference

SUFFIXES = {"published": " (paper)", "published difference": " (paper)", "less paper": " (less paper)"}
"""What the label of a column ends in, by its kind."""
OVER_FLOOR = " over floor"
NOT_PUBLISHED = Cell("not in the paper", is_missing=True)
NEEDS_BOTH = Cell("needs both", is_missing=True)


@dataclass(frozen=True)
class Spec:
    """What a table is.

    Attributes:
        name: of its files, such as ``table1``.
        title: such as ``Table 1``.
        question: first sentence of the caption.
        row_header: heading of the first column.
        rules: where series stand, and what is kept apart.
        rows: their order; others follow in that of the series.
        columns: their order.
        published: printed numbers in percent, by place; they are shown where the scale is the paper's.
        best: whether the best of each ``column``, of each ``row``, or nothing is set in bold; floors never are.
        compare: headings of two columns whose difference is shown: the second less the first; empty for none.
        over_floor: whether columns show how far everything is above untrained backbones.
        remark: last sentence of the caption.
    """

    name: str
    title: str
    question: str
    row_header: str
    rules: Rules
    rows: Sequence[str] = ()
    columns: Sequence[Heading] = ()
    published: Mapping[Place, float] = field(default_factory=dict)
    best: str = ""
    compare: tuple[Heading, ...] = ()
    over_floor: bool = False
    remark: str = ""


def build(runs: StudyRuns, series: Sequence[Series], spec: Spec) -> Table | None:
    """Make a table; None where no series belongs to it."""
    placed = place_all(series, spec.rules)
    return _Grid(runs, placed, spec).table() if placed.series else None


class _Grid:
    """The cells of one table, while it is made."""

    def __init__(self, runs: StudyRuns, placed: Placed, spec: Spec) -> None:
        self._runs, self._spec, self._placed, self._series = runs, spec, placed, placed.series
        at_paper_scale = {one.facts["scale"] for one in self._series.values()} == {"paper"}
        self._published = spec.published if at_paper_scale else {}
        places = [*self._series, *self._published]
        floors = [row for (row, _), one in self._series.items() if one.is_floor and not spec.rules.rows]
        self._rows = in_order([row for row, _ in places], spec.rows, last=floors)
        self._columns = grouped(in_order([column for _, column in places], spec.columns))
        self._headings = self._all_headings()
        self._best = _best(self._series, spec.best)

    def table(self) -> Table:
        spec, series = self._spec, self._series
        everything, best = list(series.values()), spec.best if self._best else ""
        about = about_of(spec.question, everything)
        kinds = [kind for kind, _ in self._headings]
        help_ = reading_help(everything, columns=kinds, best=best, remark=spec.remark)
        return Table(
            name=spec.name,
            title=spec.title,
            caption=f"{about} {help_}".strip(),
            row_header=spec.row_header,
            columns=tuple(_heading(kind, column) for kind, column in self._headings),
            rows=tuple(map(self._row, self._rows)),
            notes=notes_of(self._runs, series),
            records=tuple(
                self._record((label, column), kind)
                for label in self._rows
                for kind, column in self._headings
                if kind in ("measured", "published")
            ),
            about=about,
        )

    def _all_headings(self) -> list[tuple[str, Heading]]:
        """Return (kind, column) of everything that is shown, left to right."""
        compare = self._spec.compare
        printed = [column for column in self._columns if any(column == other for _, other in self._published)]
        shown = [("measured", column) for column in self._columns]
        if compare and set(compare) <= set(self._columns):
            shown.append(("difference", compare[1]))
        if self._spec.over_floor and self._placed.floors:
            shown += [("over floor", column) for column in self._columns]
        shown += [("published", column) for column in printed]
        if compare and set(compare) <= set(printed):
            shown.append(("published difference", compare[1]))
        return [*shown, *(("less paper", column) for column in printed)]

    def _row(self, label: str) -> Row:
        cells = tuple(self._cell(kind, (label, column)) for kind, column in self._headings)
        return Row(label, cells, self._is_floor(label))

    def _is_floor(self, label: str) -> bool:
        mine = [one.is_floor for (row, _), one in self._series.items() if row == label]
        return bool(mine) and all(mine)

    def _cell(self, kind: str, place: Place) -> Cell:
        if kind == "measured":
            return _measured(self._series.get(place), is_best=place in self._best)
        if kind == "published":
            return Cell(f"{self._published[place]:.1f}") if place in self._published else NOT_PUBLISHED
        if kind == "less paper":
            return self._less_paper(place)
        if kind == "over floor":
            series, floor = self._series.get(place), self._placed.floors.get(place)
            if series is not None and series.is_floor:
                return Cell("\u2013", is_missing=True)
            return _difference(series, floor)
        first, second = ((place[0], heading) for heading in self._spec.compare)
        if kind == "difference":
            return _difference(self._series.get(second), self._series.get(first))
        if first in self._published and second in self._published:
            return Cell(f"{self._published[second] - self._published[first]:+.1f}")
        return NOT_PUBLISHED

    def _less_paper(self, place: Place) -> Cell:
        series = self._series.get(place)
        if place not in self._published or series is None or series.result.mean is None:
            return NEEDS_BOTH
        return Cell(f"{100 * series.result.mean - self._published[place]:+.1f}", run_ids=series.result.run_ids)

    def _record(self, place: Place, kind: str) -> dict[str, Any]:
        """Return a cell with everything behind it: every number leads back to its runs, or to the paper."""
        (row, (group, label)), series = place, self._series.get(place) if kind == "measured" else None
        facts = {} if series is None else series.facts
        known = {} if series is None else {"mean": series.result.mean, "std": series.result.std}
        is_printed = kind == "published" and place in self._published
        gaps = {} if series is None else series.result.missing
        floor = None if series is None else self._placed.floors.get(place)
        gain = _less(series, floor)
        listed = ("method", "relaxation", "scale", "pretrain_data", "pretrain_family", "backbone")
        return {
            "table": self._spec.title.removeprefix("Table "),
            "study": self._runs.study,
            "fingerprint": self._runs.fingerprint,
            "source": "paper" if kind == "published" else "measured",
            "row": row,
            "group": group,
            "column": f"{group} {label}".strip(),
            "is_floor": str(self._is_floor(row)).lower(),
            "modality": "" if series is None else series.column.modality,
            **{key: facts.get(key, "") for key in listed},
            **{key: facts.get(key, "") for key in ("downstream_data", "protocol", "frames", "epoch", "family")},
            "metric": "" if series is None else series.column.metric,
            "folds": "" if series is None else " ".join(map(str, series.column.folds)),
            "mean": _number(self._published[place] / 100 if is_printed else known.get("mean")),
            "std": _number(known.get("std")),
            "n": 0 if series is None else len(series.result.values),
            "seeds": "" if series is None else " ".join(map(str, series.result.values)),
            "is_best": str(kind == "measured" and place in self._best).lower(),
            "gain_over_floor_points": _number(None if gain is None else 100 * gain.mean),
            "run_ids": "" if series is None else " ".join(series.result.run_ids),
            "missing": "; ".join(f"seed {seed}: {gap.text}" for seed, gap in gaps.items()),
        }


def _heading(kind: str, column: Heading) -> Heading:
    group, label = column
    if "difference" in kind:
        label = "difference"
    if kind == "over floor":
        return (group + OVER_FLOOR).strip(), label
    return group, label + SUFFIXES.get(kind, "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _best(placed: Mapping[Place, Series], among: str) -> set[Place]:
    """Return the places of the best of each column or row, where there is more than one to choose from."""
    rivals: dict[Any, list[Place]] = {}
    for place, series in placed.items():
        if among and series.result.values and not series.is_floor:
            rivals.setdefault(place[1] if among == "column" else place[0], []).append(place)
    best = set()
    for places in rivals.values():
        texts = {place: placed[place].result.printed_mean for place in places}
        highest = max(texts.values(), key=float)
        best |= {place for place, text in texts.items() if text == highest and len(places) > 1}
    return best


def _less(series: Series | None, other: Series | None) -> Difference | None:
    """Return one series less another, seed by seed; None where one is not there or they share no seed."""
    if series is None or other is None:
        return None
    return difference(series.result.values, other.result.values)


def _difference(series: Series | None, other: Series | None) -> Cell:
    if series is None or other is None or (found := _less(series, other)) is None:
        return NEEDS_BOTH
    return Cell(found.text, run_ids=(*other.result.run_ids, *series.result.run_ids))


def _measured(series: Series | None, *, is_best: bool) -> Cell:
    if series is None:
        return Cell("not in the study", is_missing=True)
    if series.result.mean is None:
        return Cell(series.result.text, is_missing=True)
    return Cell(series.result.text, is_best=is_best, run_ids=series.result.run_ids)
