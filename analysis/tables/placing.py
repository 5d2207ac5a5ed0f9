"""Where series stand in a table: what differs never shares a heading; untrained backbones stand beside all they are of.

A table has its evaluations in its rows (Table 1) or in its columns (Table 3); what is pretrained is on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from analysis.runs import BY_TEST
from analysis.tables.published import shown
from analysis.tables.series import Series

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
