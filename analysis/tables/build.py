"""Cells of a table: measured numbers, published numbers, differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from analysis.runs import StudyRuns
from analysis.tables.captions import about_of, notes_of, reading_help
from analysis.tables.layout import Heading, Layout, LayoutRules, Position, lay_out
from analysis.tables.measurements import Series
from analysis.tables.statistics import Difference, difference
from analysis.tables.table import Cell, Row, Table

Item = TypeVar("Item")

SUFFIXES = {"published": " (paper)", "published difference": " (paper)", "less paper": " (less paper)"}
"""Endings of column labels, by kind of column."""

OVER_RANDOM_INIT = " over floor"
NOT_PUBLISHED = Cell("not in the paper", is_missing=True)
NEEDS_BOTH = Cell("needs both", is_missing=True)


@dataclass(frozen=True)
class TableSpec:
    """Definition of a table.

    Attributes:
        name: of its files, such as ``table1``.
        title: such as ``Table 1``.
        question: first sentence of the caption.
        row_header: heading of the first column.
        rules: positions of the series, and the facts that separate them.
        rows: their order; others follow in the order of the series.
        columns: their order.
        published: printed numbers in percent, by position; shown if all runs are at the paper's scale.
        best: whether the best of each ``column``, of each ``row``, or nothing is bold; baselines never are.
        compare: headings of two columns whose difference is shown: the second less the first; empty for none.
        over_random_init: whether columns show the gain over the random-init baseline.
        remark: last sentence of the caption.
    """

    name: str
    title: str
    question: str
    row_header: str
    rules: LayoutRules
    rows: Sequence[str] = ()
    columns: Sequence[Heading] = ()
    published: Mapping[Position, float] = field(default_factory=dict)
    best: str = ""
    compare: tuple[Heading, ...] = ()
    over_random_init: bool = False
    remark: str = ""


def build_table(runs: StudyRuns, series: Sequence[Series], spec: TableSpec) -> Table | None:
    """Build a table; None if no series belongs to it."""
    layout = lay_out(series, spec.rules)
    return _TableBuilder(runs, layout, spec).table() if layout.series else None


class _TableBuilder:
    """The cells of one table."""

    def __init__(self, runs: StudyRuns, layout: Layout, spec: TableSpec) -> None:
        self._runs, self._spec, self._layout, self._series = runs, spec, layout, layout.series
        at_paper_scale = {one.facts["scale"] for one in self._series.values()} == {"paper"}
        self._published = spec.published if at_paper_scale else {}
        positions = [*self._series, *self._published]
        baselines = [row for (row, _), one in self._series.items() if one.is_random_init and not spec.rules.rows]
        self._rows = in_order([row for row, _ in positions], spec.rows, last=baselines)
        self._columns = grouped(in_order([column for _, column in positions], spec.columns))
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
            columns=tuple(_column_heading(kind, column) for kind, column in self._headings),
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
        """Return (kind, column) of all columns, left to right."""
        compare = self._spec.compare
        printed = [column for column in self._columns if any(column == other for _, other in self._published)]
        shown = [("measured", column) for column in self._columns]
        if compare and set(compare) <= set(self._columns):
            shown.append(("difference", compare[1]))
        if self._spec.over_random_init and self._layout.baselines:
            shown += [("over random init", column) for column in self._columns]
        shown += [("published", column) for column in printed]
        if compare and set(compare) <= set(printed):
            shown.append(("published difference", compare[1]))
        return [*shown, *(("less paper", column) for column in printed)]

    def _row(self, label: str) -> Row:
        cells = tuple(self._cell(kind, (label, column)) for kind, column in self._headings)
        return Row(label, cells, self._is_random_init(label))

    def _is_random_init(self, label: str) -> bool:
        mine = [one.is_random_init for (row, _), one in self._series.items() if row == label]
        return bool(mine) and all(mine)

    def _cell(self, kind: str, position: Position) -> Cell:
        if kind == "measured":
            return _measured(self._series.get(position), is_best=position in self._best)
        if kind == "published":
            return Cell(f"{self._published[position]:.1f}") if position in self._published else NOT_PUBLISHED
        if kind == "less paper":
            return self._less_paper(position)
        if kind == "over random init":
            series, baseline = self._series.get(position), self._layout.baselines.get(position)
            if series is not None and series.is_random_init:
                return Cell("\u2013", is_missing=True)
            return _difference(series, baseline)
        first, second = ((position[0], heading) for heading in self._spec.compare)
        if kind == "difference":
            return _difference(self._series.get(second), self._series.get(first))
        if first in self._published and second in self._published:
            return Cell(f"{self._published[second] - self._published[first]:+.1f}")
        return NOT_PUBLISHED

    def _less_paper(self, position: Position) -> Cell:
        series = self._series.get(position)
        if position not in self._published or series is None or series.result.mean is None:
            return NEEDS_BOTH
        return Cell(f"{100 * series.result.mean - self._published[position]:+.1f}", run_ids=series.result.run_ids)

    def _record(self, position: Position, kind: str) -> dict[str, Any]:
        """Return one line of the CSV: a number and its sources."""
        (row, (group, label)), series = position, self._series.get(position) if kind == "measured" else None
        facts = {} if series is None else series.facts
        known = {} if series is None else {"mean": series.result.mean, "std": series.result.std}
        is_printed = kind == "published" and position in self._published
        gaps = {} if series is None else series.result.missing
        baseline = None if series is None else self._layout.baselines.get(position)
        gain = _less(series, baseline)
        listed = ("method", "relaxation", "scale", "pretrain_data", "pretrain_family", "backbone")
        return {
            "table": self._spec.title.removeprefix("Table "),
            "study": self._runs.study,
            "fingerprint": self._runs.study_hash,
            "source": "paper" if kind == "published" else "measured",
            "row": row,
            "group": group,
            "column": f"{group} {label}".strip(),
            "is_floor": str(self._is_random_init(row)).lower(),
            "modality": "" if series is None else series.column.modality,
            **{key: facts.get(key, "") for key in listed},
            **{key: facts.get(key, "") for key in ("downstream_data", "protocol", "frames", "epoch", "family")},
            "metric": "" if series is None else series.column.metric,
            "folds": "" if series is None else " ".join(map(str, series.column.folds)),
            "mean": _number(self._published[position] / 100 if is_printed else known.get("mean")),
            "std": _number(known.get("std")),
            "n": 0 if series is None else len(series.result.values),
            "seeds": "" if series is None else " ".join(map(str, series.result.values)),
            "is_best": str(kind == "measured" and position in self._best).lower(),
            "gain_over_floor_points": _number(None if gain is None else 100 * gain.mean),
            "run_ids": "" if series is None else " ".join(series.result.run_ids),
            "missing": "; ".join(f"seed {seed}: {gap.text}" for seed, gap in gaps.items()),
        }


def in_order(found: Iterable[Item], order: Sequence[Item], *, last: Iterable[Item] = ()) -> list[Item]:
    """Return distinct items: ``order`` first, then others, ``last`` at the end."""
    found, end = list(dict.fromkeys(found)), set(last)
    known = [item for item in dict.fromkeys(order) if item in found and item not in end]
    others = [item for item in found if item not in end and item not in known]
    return [*known, *others, *(item for item in found if item in end)]


def grouped(headings: Sequence[Heading]) -> list[Heading]:
    """Return columns sorted by group, groups in order of appearance."""
    by_group: dict[str, list[Heading]] = {}
    for heading in headings:
        by_group.setdefault(heading[0], []).append(heading)
    return [heading for members in by_group.values() for heading in members]


def _column_heading(kind: str, column: Heading) -> Heading:
    group, label = column
    if "difference" in kind:
        label = "difference"
    if kind == "over random init":
        return (group + OVER_RANDOM_INIT).strip(), label
    return group, label + SUFFIXES.get(kind, "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _best(series: Mapping[Position, Series], among: str) -> set[Position]:
    """Return the best positions of columns or rows with several numbers."""
    rivals: dict[Any, list[Position]] = {}
    for position, one in series.items():
        if among and one.result.values and not one.is_random_init:
            rivals.setdefault(position[1] if among == "column" else position[0], []).append(position)
    best = set()
    for positions in rivals.values():
        texts = {position: series[position].result.printed_mean for position in positions}
        highest = max(texts.values(), key=float)
        best |= {position for position, text in texts.items() if text == highest and len(positions) > 1}
    return best


def _less(series: Series | None, other: Series | None) -> Difference | None:
    """Return one series less another, paired by seed; None without common seeds."""
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
