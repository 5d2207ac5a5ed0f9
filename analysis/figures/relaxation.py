"""The relaxation study as a chart: what Table 3 holds, with error bars, and the floor below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.figures.base import Drawing, NotThereError, Wanted
from analysis.figures.style import FLOOR, Look, look_of, new_figure, styled
from analysis.runs import StudyRuns
from analysis.tables.paper import table3

FLOOR_LINE = (0, (5, 3))
SPREAD = 0.16
"""Between the modalities of one relaxation, in units of the distance between relaxations."""


def build(runs: StudyRuns, wanted: Wanted) -> Drawing:
    """Make the figure from the very numbers of Table 3.

    Raises:
        NotThereError: no evaluation is done.
    """
    del wanted
    table = table3(runs)
    if table is None or not any(record["mean"] for record in table.records):
        raise NotThereError(f"no evaluation of the study {runs.study} is done yet")
    panels = _panels(table.records)
    with styled():
        figure = new_figure(2.75)
        places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (group, records) in zip(places, panels.items(), strict=True):
            _draw(axes, records, title=group if len(panels) > 1 else "")
        places[0].set_ylabel("top-1 or recall (%)" if _has_recall(table.records) else "top-1 accuracy (%)")
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    missing = [
        f"{record['row']} {record['column']}: {record['missing']}" for record in table.records if record["missing"]
    ]
    return Drawing(
        name="relaxation",
        title="The relaxation study",
        figure=figure,
        caption=f"{table.about} Error bars: one sample standard deviation, where n > 1."
        " Dashed lines: the floor, the same evaluation of untrained backbones. The numbers are those of Table 3.",
        runs=_runs(runs, table.records),
        missing=tuple(missing),
    )


def _panels(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the records of each group of columns, in the table's order."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["metric"]:  # nothing has been evaluated in this place of the table
            panels.setdefault(record["group"], []).append(record)
    return panels


def _has_recall(records: Sequence[Mapping[str, Any]]) -> bool:
    return any("recall" in record["metric"] for record in records)


def _draw(axes: Axes, records: Sequence[Mapping[str, Any]], *, title: str) -> None:
    rows = [*dict.fromkeys(record["row"] for record in records if record["is_floor"] == "false")]
    metrics = [*dict.fromkeys(record["metric"] for record in records)]
    for number, metric in enumerate(metrics):
        ours = [record for record in records if record["metric"] == metric]
        look = look_of(number)
        shift = SPREAD * (number - (len(metrics) - 1) / 2)
        there = [(rows.index(one["row"]) + shift, one) for one in ours if one["is_floor"] == "false" and one["mean"]]
        axes.plot(
            [place for place, _ in there],
            [100 * float(one["mean"]) for _, one in there],
            linestyle="none",
            label=_name(metric),
            **look,
        )
        for place, one in there:
            if one["std"]:  # of one seed there is none, and a bar of no length would say that it is sure
                axes.errorbar(
                    place,
                    100 * float(one["mean"]),
                    yerr=100 * float(one["std"]),
                    fmt="none",
                    ecolor=look["color"],
                    elinewidth=1,
                    capsize=2.5,
                )
        for one in ours:
            if one["is_floor"] == "true" and one["mean"]:
                _floor(axes, 100 * float(one["mean"]), right=len(rows) - 0.45, look=look)
    axes.plot([], [], linestyle=FLOOR_LINE, color=FLOOR, linewidth=0.9, label="untrained (floor)")
    axes.set_xticks(range(len(rows)), rows)
    axes.set_xlim(-0.5, len(rows) - 0.45)
    axes.set_xlabel("temporal relaxation")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, color=FLOOR)


def _floor(axes: Axes, height: float, *, right: float, look: Look) -> None:
    """Draw the line of a modality's floor, which ends in the modality's marker, hollow."""
    axes.axhline(height, color=look["color"], linestyle=FLOOR_LINE, linewidth=0.9)
    axes.plot(right, height, fillstyle="none", clip_on=False, markersize=3.5, **look)


def _name(metric: str) -> str:
    measure, _, modality = metric.removeprefix("eval/").rpartition("_")
    name = {"v": "video", "a": "audio", "av": "audio + video"}[modality]
    return name if measure == "top1" else f"{name} R@{measure.removeprefix('recall_at_')}"


def _runs(runs: StudyRuns, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["row"], set()).update(record["run_ids"].split())
    frame = runs.evaluations
    return {row: frame[frame["run_id"].isin(ids)] for row, ids in found.items() if ids}
