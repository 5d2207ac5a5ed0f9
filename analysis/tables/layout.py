"""Rows and columns of series: different results never share a cell.

A random-init baseline appears under the headings of the pretrained series that it belongs to.
A table has its evaluations in its rows (Table 1) or in its columns (Table 3). The pretrainings are on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis.runs import BY_TEST
from analysis.tables.measurements import Series
from analysis.tables.published import shown

Heading = tuple[str, str]
"""Group and label of a column."""

Position = tuple[str, Heading]
"""Row and column of a cell."""

PROTOCOL = ("scale", "protocol", "frames", "segments", "distance", "epoch")
"""Facts that distinguish evaluations of one dataset."""

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
"""The text of a fact in a heading, where it distinguishes the heading from others."""


@dataclass(frozen=True)
class LayoutRules:
    """Where series belong, and which facts separate them.

    Attributes:
        position: row and column of a series; None = not in this table.
        rows: whether evaluations are its rows; otherwise they are its columns.
        apart: facts that separate evaluations and that a heading names.
        families: facts that separate evaluations and that a heading shows as hash digits: ``family``,
            ``pretrain_family``.
    """

    position: Callable[[Series], Position | None]
    rows: bool
    apart: Sequence[str] = PROTOCOL
    families: Sequence[str] = ("family",)


@dataclass(frozen=True)
class Layout:
    """Series by their position in a table.

    Attributes:
        series: by position.
        baselines: for each position of a pretrained backbone, the same evaluation of a random-init backbone, if any.
    """

    series: dict[Position, Series]
    baselines: dict[Position, Series]


def standard(series: Sequence[Series]) -> list[Series]:
    """Return the series that belong in tables.

    Evaluations along pretrainings (``weights.epoch``) belong in Figure 3 if the study has the same evaluation at the
    end. Random-init baselines of such evaluations alone are left out as well.
    """
    trained = [one for one in series if not one.is_random_init]
    at_the_end = {_evaluation(one) for one in trained if not one.facts["epoch"]}
    kept = [one for one in trained if not one.facts["epoch"] or _evaluation(one) not in at_the_end]
    baselines = [one for one in series if one.is_random_init]
    needed, known = (_ids(_baselines_of(some, baselines, ["family"])) for some in (kept, trained))
    dropped = (known - needed) | ({id(one) for one in trained} - {id(one) for one in kept})
    return [one for one in series if id(one) not in dropped]


def lay_out(series: Sequence[Series], rules: LayoutRules) -> Layout:
    """Give each series its own position, with headings that name differences."""
    trained = [(at, one) for one in series if not one.is_random_init and (at := rules.position(one)) is not None]
    trained = _separate_evaluations(trained, rules)
    trained = _separate_cells(trained, rules, ("point", *PRETRAINED), ("pretrain_family", "family"))
    baselines = [(at, one) for one in series if one.is_random_init and (at := rules.position(one)) is not None]
    found = _baselines_of([one for _, one in trained], [one for _, one in baselines], rules.families)
    positioned = _position_baselines(baselines, trained, found, rules)
    positioned = _separate_cells(positioned, rules, ("backbone",), ("family",))
    baseline_at = {at: ours[0] for (at, _), ours in zip(trained, found, strict=True) if len(ours) == 1}
    return Layout({**dict(trained), **dict(positioned)}, baseline_at)


def _position_baselines(
    baselines: Sequence[tuple[Position, Series]],
    trained: Sequence[tuple[Position, Series]],
    found: Sequence[Sequence[Series]],
    rules: LayoutRules,
) -> list[tuple[Position, Series]]:
    """Repeat each baseline under every heading of its pretrained series.

    Args:
        baselines: random-init series at the positions of the rules.
        trained: pretrained series at their final positions.
        found: the baselines of each of ``trained``.
        rules: of the table.
    """
    positioned = []
    for position, baseline in baselines:
        hosts = [host for (host, _), ours in zip(trained, found, strict=True) if id(baseline) in _ids([ours])]
        sides = list(dict.fromkeys(_evaluations_side(host, rules) for host in hosts))
        alone = _evaluations_side(position, rules)
        if any(_evaluations_side(host, rules) == alone for host, _ in trained):
            alone = _renamed(alone, f" [{baseline.facts['family']}]")
        positioned += [(_with_side(position, side), baseline) for side in sides or [alone]]
    return positioned


def _evaluation(series: Series) -> tuple[str, ...]:
    return (*series.of(SAME_EVALUATION), series.column.metric)


def _ids(groups: Iterable[Sequence[Series]]) -> set[int]:
    return {id(one) for group in groups for one in group}


def _baselines_of(
    trained: Sequence[Series], baselines: Sequence[Series], families: Sequence[str]
) -> list[list[Series]]:
    """Return the random-init baselines of each series; several if indistinguishable.

    Evaluations of kept epochs have families of their own, because a random-init backbone has no epochs. So do other
    networks where families may share a column. In both cases the facts of the evaluation decide.
    """
    by_evaluation: dict[tuple[object, ...], list[Series]] = {}
    for baseline in baselines:
        by_evaluation.setdefault((*_evaluation(baseline), baseline.column.folds), []).append(baseline)
    found = []
    for one in trained:
        rivals = by_evaluation.get((*_evaluation(one), one.column.folds), [])
        ours = [baseline for baseline in rivals if baseline.facts["family"] == one.facts["family"]]
        if not ours and ("family" not in families or (one.facts["epoch"] and len(rivals) == 1)):
            ours = rivals
        found.append(ours)
    return found


def _separate_evaluations(
    positioned: list[tuple[Position, Series]], rules: LayoutRules
) -> list[tuple[Position, Series]]:
    """Give different evaluations different headings."""
    by_heading: dict[str, list[Series]] = {}
    for position, one in positioned:
        by_heading.setdefault(_heading(position, rules), []).append(one)
    separated = []
    for position, one in positioned:
        members = by_heading[_heading(position, rules)]
        words = _words(one, _varying(members, rules.apart), always=("epoch",))
        if one.facts["protocol"].endswith(BY_TEST) and one.facts["protocol"] not in words and "protocol" in rules.apart:
            words.append(one.facts["protocol"])
        same = [other for other in members if other.of(rules.apart) == one.of(rules.apart)]
        text = f" ({', '.join(words)})" if words else ""
        if len({other.of(rules.families) for other in same}) > 1:
            text += f" [{'/'.join(filter(None, one.of(rules.families)))}]"
        separated.append((_with_side(position, _renamed(_evaluations_side(position, rules), text)), one))
    return separated


def _separate_cells(
    positioned: list[tuple[Position, Series]], rules: LayoutRules, facts: Sequence[str], digits: Sequence[str]
) -> list[tuple[Position, Series]]:
    """Give series of one cell different headings of their pretrainings."""
    by_position: dict[Position, list[Series]] = {}
    for position, one in positioned:
        by_position.setdefault(position, []).append(one)
    separated = []
    for position, one in positioned:
        side = _other_side(position, rules)
        alike = [group for at, group in by_position.items() if _other_side(at, rules) == side and len(group) > 1]
        varying = [name for name in facts if any(_varying(group, [name]) for group in alike)]
        words = _words(one, varying)
        text = f" ({', '.join(words)})" if words else ""
        if sum(_words(other, varying) == words for other in by_position[position]) > 1:
            text += f" [{'/'.join(filter(None, one.of(digits)))}]"
        separated.append((_with_side(position, _relabeled(side, text)), one))
    return separated


def _varying(series: Sequence[Series], facts: Iterable[str]) -> list[str]:
    return [name for name in facts if len({one.facts[name] for one in series} - {""}) > 1]


def _words(series: Series, varying: Iterable[str], *, always: Sequence[str] = ()) -> list[str]:
    words: list[str] = []
    for name in dict.fromkeys([*varying, *always]):
        if name == "point":
            named = {series.facts[fact] for fact in PRETRAINED}
            words += [f"{axis}={value}" for axis, value in series.point.items() if value not in named]
        elif series.facts[name]:
            words.append(WORDS[name].format(shown(series.facts[name])))
    return words


def _heading(position: Position, rules: LayoutRules) -> str:
    """Return the evaluations' heading: the row, or the column's group."""
    return position[0] if rules.rows else position[1][0]


def _evaluations_side(position: Position, rules: LayoutRules) -> str | Heading:
    return position[0] if rules.rows else position[1]


def _other_side(position: Position, rules: LayoutRules) -> str | Heading:
    return position[1] if rules.rows else position[0]


def _with_side(position: Position, side: str | Heading) -> Position:
    """Return a position in another row, or in another column."""
    return (side, position[1]) if isinstance(side, str) else (position[0], side)


def _renamed(side: str | Heading, text: str) -> str | Heading:
    """Add to a row's label, or to the group of a column."""
    if isinstance(side, str):
        return side + text
    group, label = side
    return (group + text, label) if group else (group, label + text)


def _relabeled(side: str | Heading, text: str) -> str | Heading:
    """Add to a row's or a column's own label."""
    return side + text if isinstance(side, str) else (side[0], side[1] + text)
