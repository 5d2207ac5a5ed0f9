"""A table whose cells are series: measured numbers, published ones beside them in columns of their own, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.runs import StudyRuns
from analysis.tables.base import Cell, Row, Table
from analysis.tables.captions import caption_of, notes_of
from analysis.tables.series import Series
from analysis.tables.spread import difference

Heading = tuple[str, str]
"""Group and label of a column."""
Place = tuple[str, Heading]
"""Row and column of a cell."""
PAPER = " (paper)"


@dataclass(frozen=True)
class Spec:
    """What a table is.

    Attributes:
        name: of its files, such as ``table1``.
        title: such as ``Table 1``.
        question: first sentence of the caption.
        row_header: heading of the first column.
        place: where a series stands; None = not in this table.
        rows: their order; others follow in alphabetical order.
        columns: their order.
        published: printed numbers in percent, by place; they are shown where the scale is the paper's.
        best: whether the best of each ``column``, of each ``row``, or nothing is set in bold; floors never are.
        compare: headings of two columns whose difference is shown: the second less the first.
    """

    name: str
    title: str
    question: str
    row_header: str
    place: Callable[[Series], Place | None]
    rows: Sequence[str] = ()
    columns: Sequence[Heading] = ()
    published: Mapping[Place, float] = field(default_factory=dict)
    best: str = ""
    compare: tuple[Heading, Heading] | None = None


def build(runs: StudyRuns, series: Sequence[Series], spec: Spec) -> Table | None:
    """Make a table; None where no series belongs to it."""
    placed = _placed(series, spec)
    if not placed:
        return None
    at_paper_scale = {one.facts["scale"] for one in placed.values()} == {"paper"}
    published = spec.published if at_paper_scale else {}
    rows = _ordered(
        {row for row, _ in [*placed, *published]}, spec.rows, last={r for (r, _), s in placed.items() if s.is_floor}
    )
    columns = _ordered({column for _, column in [*placed, *published]}, spec.columns)
    best = _best(placed, spec.best)
    headings = _headings(columns, published, spec)

    def row(label: str) -> Row:
        cells = [_cell(kind, (label, column), placed, published, spec, best) for kind, column in headings]
        mine = [one for (name, _), one in placed.items() if name == label]
        return Row(label, tuple(cells), bool(mine) and all(one.is_floor for one in mine))

    return Table(
        name=spec.name,
        title=spec.title,
        caption=caption_of(spec.question, list(placed.values()), has_difference=spec.compare is not None),
        row_header=spec.row_header,
        columns=tuple(_heading(kind, column, spec) for kind, column in headings),
        rows=tuple(map(row, rows)),
        notes=notes_of(runs, placed),
        records=tuple(
            _record(runs, spec, (label, column), kind, placed, published)
            for label in rows
            for kind, column in headings
            if kind != "difference"
        ),
    )


def _placed(series: Sequence[Series], spec: Spec) -> dict[Place, Series]:
    """Give each series its place; those of one place get rows of their own, told apart by what they are."""
    by_place: dict[Place, list[Series]] = {}
    for one in series:
        place = spec.place(one)
        if place is not None:
            by_place.setdefault(place, []).append(one)
    placed = {}
    for (row, column), several in by_place.items():
        for one in several:
            tells_apart = f" [{one.facts['pretrain_family']}/{one.facts['family']}]" if len(several) > 1 else ""
            placed[row + tells_apart, column] = one
    return placed


def _ordered(found: set[Any], order: Sequence[Any], *, last: set[Any] = frozenset()) -> list[Any]:
    known = [item for item in order if item in found and item not in last]
    return [*known, *sorted(found - set(known) - last), *sorted(last)]


def _headings(columns: Sequence[Heading], published: Mapping[Place, float], spec: Spec) -> list[tuple[str, Heading]]:
    """Return (kind, column) of everything that is shown, left to right."""
    printed = [column for column in columns if any(column == other for _, other in published)]
    shown = [("measured", column) for column in columns]
    if spec.compare is not None and set(spec.compare) <= set(columns):
        shown.append(("difference", spec.compare[1]))
    shown += [("published", column) for column in printed]
    if spec.compare is not None and set(spec.compare) <= set(printed):
        shown.append(("published difference", spec.compare[1]))
    return shown


def _heading(kind: str, column: Heading, spec: Spec) -> Heading:
    group, label = column
    if "difference" in kind:
        label = "difference"
    return (group, label + (PAPER if kind.startswith("published") else ""))


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


def _cell(
    kind: str,
    place: Place,
    placed: Mapping[Place, Series],
    published: Mapping[Place, float],
    spec: Spec,
    best: set[Place],
) -> Cell:
    row, _ = place
    if kind == "measured":
        return _measured(placed.get(place), is_best=place in best)
    if kind == "published":
        return Cell(f"{published[place]:.1f}") if place in published else Cell("not in the paper", is_missing=True)
    first, second = ((row, heading) for heading in spec.compare)
    if kind == "published difference":
        if first in published and second in published:
            return Cell(f"{published[second] - published[first]:+.1f}")
        return Cell("not in the paper", is_missing=True)
    with_both = [placed[one].result for one in (first, second) if one in placed]
    found = difference(with_both[1].values, with_both[0].values) if len(with_both) == 2 else None
    if found is None:
        return Cell("needs both", is_missing=True)
    return Cell(found.text, run_ids=tuple(run_id for result in with_both for run_id in result.run_ids))


def _measured(series: Series | None, *, is_best: bool) -> Cell:
    if series is None:
        return Cell("not part of the study", is_missing=True)
    if series.result.mean is None:
        return Cell(series.result.text, is_missing=True)
    return Cell(series.result.text, is_best=is_best, run_ids=series.result.run_ids)


def _record(
    runs: StudyRuns,
    spec: Spec,
    place: Place,
    kind: str,
    placed: Mapping[Place, Series],
    published: Mapping[Place, float],
) -> dict[str, Any]:
    """Return a cell with everything behind it: every number leads back to its runs, or to the paper."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    (row, (group, label)), series = place, placed.get(place) if kind == "measured" else None
    facts = {} if series is None else series.facts
    known = {} if series is None else {"mean": series.result.mean, "std": series.result.std}
    mean = published[place] / 100 if kind == "published" and place in published else known.get("mean")
    gaps = {} if series is None else series.result.missing
    return {
        "table": spec.title.removeprefix("Table "),
        "study": runs.study,
        "fingerprint": runs.fingerprint,
        "source": "paper" if kind == "published" else "measured",
        "row": row,
        "column": f"{group} {label}".strip(),
        "modality": "" if series is None else series.column.modality,
        **{key: facts.get(key, "") for key in ("method", "scale", "pretrain_data", "pretrain_family", "backbone")},
        **{key: facts.get(key, "") for key in ("downstream_data", "protocol", "frames", "family")},
        "metric": "" if series is None else series.column.metric,
        "folds": "" if series is None else " ".join(map(str, series.column.folds)),
        "mean": number(mean),
        "std": number(known.get("std")),
        "n": 0 if series is None else len(series.result.values),
        "seeds": "" if series is None else " ".join(map(str, series.result.values)),
        "run_ids": "" if series is None else " ".join(series.result.run_ids),
        "missing": "; ".join(f"seed {seed}: {gap.text}" for seed, gap in gaps.items()),
    }
