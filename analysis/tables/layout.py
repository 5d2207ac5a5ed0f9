"""Where series stand in a table: what differs never shares a heading; untrained backbones stand beside all they are of.

A table has its evaluations in its rows (Table 1) or in its columns (Table 3); what is pretrained is on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from analysis.runs import BY_TEST, StudyRuns
from analysis.tables.captions import about_of, notes_of, reading_help
from analysis.tables.measurements import Series
from analysis.tables.published import shown
from analysis.tables.statistics import Difference, difference
from analysis.tables.table import Cell, Row, Table

Heading = tuple[str, str]
"""Group and label of a column."""

Place = tuple[str, Heading]
"""Row and column of a cell."""

Placer = Callable[[Series], Place | None]
Item = TypeVar("Item")
PROTOCOL = ("scale", "protocol", "frames", "segments", "distance", "epoch")
"""What makes evaluations of one dataset different ones."""

PRETRAINED = ("relaxation", "method", "pretrain_data", "backbone")
SAME_EVALUATION = ("scale", "downstream_data", "protocol", "frames", "segments", "distance")

WORDS = {
    "scale": "{} scale",
    "method": "{}",
    "relaxation": "{}",
    "pretrain_data": "pretrained on {}",
    "backbone": "{}",
    "protocol": "{}",
    "frames": "{} frames",
    "segments": "{} segments",
    "distance": "{} distance",
    "epoch": "after epoch {}",
}
"""How a heading tells of what its series have in common and others have not."""


@dataclass(frozen=True)
class Rules:
    """How a table keeps things apart.

    Attributes:
        place: where a series stands; None = not in this table.
        rows: whether evaluations are its rows; otherwise they are its columns.
        apart: facts by which its evaluations are told apart.
        families: facts by which they are as well, though no word tells of them: ``family``, ``pretrain_family``.
    """

    place: Placer
    rows: bool
    apart: Sequence[str] = PROTOCOL
    families: Sequence[str] = ("family",)


@dataclass(frozen=True)
class Placed:
    """Series in their places.

    Attributes:
        series: by place.
        floors: for the places of what was trained, the same evaluation of untrained backbones, where there is one.
    """

    series: dict[Place, Series]
    floors: dict[Place, Series]


def standard(series: Sequence[Series]) -> list[Series]:
    """Return the series that tables are about.

    What was measured along pretrainings (``weights.epoch``) is for Figure 3, where the same was measured at their end,
    and with it go untrained backbones that were evaluated in that way alone.
    """
    trained = [one for one in series if not one.is_floor]
    at_the_end = {_evaluation(one) for one in trained if not one.facts["epoch"]}
    kept = [one for one in trained if not one.facts["epoch"] or _evaluation(one) not in at_the_end]
    floors = [one for one in series if one.is_floor]
    needed, known = (_ids(_floors_of(some, floors, ["family"])) for some in (kept, trained))
    dropped = (known - needed) | ({id(one) for one in trained} - {id(one) for one in kept})
    return [one for one in series if id(one) not in dropped]


def place_all(series: Sequence[Series], rules: Rules) -> Placed:
    """Give each series its place; those of one place get headings of their own, told apart by what they are."""
    trained = [(place, one) for one in series if not one.is_floor and (place := rules.place(one)) is not None]
    trained = _apart_from_other_protocols(trained, rules)
    trained = _apart_from_each_other(trained, rules, ("point", *PRETRAINED), ("pretrain_family", "family"))
    floors = [(place, one) for one in series if one.is_floor and (place := rules.place(one)) is not None]
    found = _floors_of([one for _, one in trained], [one for _, one in floors], rules.families)
    standing = []
    for place, floor in floors:
        hosts = [host for (host, _), ours in zip(trained, found, strict=True) if id(floor) in _ids([ours])]
        sides = list(dict.fromkeys(_evaluations_side(host, rules) for host in hosts))
        alone = _evaluations_side(place, rules)
        if any(_evaluations_side(host, rules) == alone for host, _ in trained):
            alone = _renamed(alone, f" [{floor.facts['family']}]")
        standing += [(_with_side(place, side), floor) for side in sides or [alone]]
    standing = _apart_from_each_other(standing, rules, ("backbone",), ("family",))
    beside = {place: ours[0] for (place, _), ours in zip(trained, found, strict=True) if len(ours) == 1}
    return Placed({**dict(trained), **dict(standing)}, beside)


def _evaluation(series: Series) -> tuple[str, ...]:
    return (*series.of(SAME_EVALUATION), series.column.metric)


def _ids(groups: Iterable[Sequence[Series]]) -> set[int]:
    return {id(one) for group in groups for one in group}


def _floors_of(trained: Sequence[Series], floors: Sequence[Series], families: Sequence[str]) -> list[list[Series]]:
    """Return for each series the same evaluation of untrained backbones; several where there is no telling which.

    Evaluations of kept epochs are of families of their own, for untrained backbones have no epochs; so are, where
    families may share a column, those of other networks: then what is said of the evaluation has to do.
    """
    by_evaluation: dict[tuple[object, ...], list[Series]] = {}
    for floor in floors:
        by_evaluation.setdefault((*_evaluation(floor), floor.column.folds), []).append(floor)
    found = []
    for one in trained:
        rivals = by_evaluation.get((*_evaluation(one), one.column.folds), [])
        ours = [floor for floor in rivals if floor.facts["family"] == one.facts["family"]]
        if not ours and ("family" not in families or (one.facts["epoch"] and len(rivals) == 1)):
            ours = rivals
        found.append(ours)
    return found


def _apart_from_other_protocols(placed: list[tuple[Place, Series]], rules: Rules) -> list[tuple[Place, Series]]:
    """Give evaluations that differ headings of their own."""
    by_heading: dict[str, list[Series]] = {}
    for place, one in placed:
        by_heading.setdefault(_heading(place, rules), []).append(one)
    told = []
    for place, one in placed:
        members = by_heading[_heading(place, rules)]
        words = _words(one, _varying(members, rules.apart), always=("epoch",))
        if one.facts["protocol"].endswith(BY_TEST) and one.facts["protocol"] not in words and "protocol" in rules.apart:
            words.append(one.facts["protocol"])
        same = [other for other in members if other.of(rules.apart) == one.of(rules.apart)]
        text = f" ({', '.join(words)})" if words else ""
        if len({other.of(rules.families) for other in same}) > 1:
            text += f" [{'/'.join(filter(None, one.of(rules.families)))}]"
        told.append((_with_side(place, _renamed(_evaluations_side(place, rules), text)), one))
    return told


def _apart_from_each_other(
    placed: list[tuple[Place, Series]], rules: Rules, facts: Sequence[str], digits: Sequence[str]
) -> list[tuple[Place, Series]]:
    """Give what would stand in one cell headings of its own, on the side of what is pretrained."""
    by_place: dict[Place, list[Series]] = {}
    for place, one in placed:
        by_place.setdefault(place, []).append(one)
    told = []
    for place, one in placed:
        side = _other_side(place, rules)
        alike = [group for at, group in by_place.items() if _other_side(at, rules) == side and len(group) > 1]
        varying = [name for name in facts if any(_varying(group, [name]) for group in alike)]
        words = _words(one, varying)
        text = f" ({', '.join(words)})" if words else ""
        if sum(_words(other, varying) == words for other in by_place[place]) > 1:
            text += f" [{'/'.join(filter(None, one.of(digits)))}]"
        told.append((_with_side(place, _relabelled(side, text)), one))
    return told


def _varying(series: Sequence[Series], facts: Iterable[str]) -> list[str]:
    return [name for name in facts if len({one.facts[name] for one in series} - {""}) > 1]


def _words(series: Series, varying: Iterable[str], *, always: Sequence[str] = ()) -> list[str]:
    words: list[str] = []
    for name in dict.fromkeys([*varying, *always]):
        if name == "point":
            told = {series.facts[fact] for fact in PRETRAINED}
            words += [f"{axis}={value}" for axis, value in series.point.items() if value not in told]
        elif series.facts[name]:
            words.append(WORDS[name].format(shown(series.facts[name])))
    return words


def _heading(place: Place, rules: Rules) -> str:
    """Return the text that names the evaluations: the row, or the group of the column."""
    return place[0] if rules.rows else place[1][0]


def _evaluations_side(place: Place, rules: Rules) -> str | Heading:
    return place[0] if rules.rows else place[1]


def _other_side(place: Place, rules: Rules) -> str | Heading:
    return place[1] if rules.rows else place[0]


def _with_side(place: Place, side: str | Heading) -> Place:
    """Return a place in another row, or in another column."""
    return (side, place[1]) if isinstance(side, str) else (place[0], side)


def _renamed(side: str | Heading, text: str) -> str | Heading:
    """Add to a row's label, or to the group of a column."""
    if isinstance(side, str):
        return side + text
    group, label = side
    return (group + text, label) if group else (group, label + text)


def _relabelled(side: str | Heading, text: str) -> str | Heading:
    """Add to a row's or a column's own label."""
    return side + text if isinstance(side, str) else (side[0], side[1] + text)


def in_order(found: Iterable[Item], order: Sequence[Item], *, last: Iterable[Item] = ()) -> list[Item]:
    """Return things once each: those of an order first, in it, then others as they come; some of them at the end."""
    found, end = list(dict.fromkeys(found)), set(last)
    known = [item for item in dict.fromkeys(order) if item in found and item not in end]
    others = [item for item in found if item not in end and item not in known]
    return [*known, *others, *(item for item in found if item in end)]


def grouped(headings: Sequence[Heading]) -> list[Heading]:
    """Return columns such that those of one group stand together, groups in the order in which they come."""
    by_group: dict[str, list[Heading]] = {}
    for heading in headings:
        by_group.setdefault(heading[0], []).append(heading)
    return [heading for members in by_group.values() for heading in members]


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


def _column_heading(kind: str, column: Heading) -> Heading:
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
