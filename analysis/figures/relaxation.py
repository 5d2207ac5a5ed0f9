"""The numbers of Table 3 as a chart with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from analysis.figures.base import Drawing, FigureOptions, NotThereError
from analysis.figures.style import RANDOM_INIT_COLOR, MarkerStyle, marker_style, new_figure, styled
from analysis.runs import StudyRuns
from analysis.tables.paper import table3

RANDOM_INIT_LINE = (0, (5, 3))
SPREAD = 0.16
"""Distance between the modalities of one relaxation; 1 is the distance between relaxations."""


def build(runs: StudyRuns, options: FigureOptions) -> Drawing:
    """Draw the figure from the numbers of Table 3.

    Raises:
        NotThereError: if no evaluation is done.
    """
    del options
    table = table3(runs)
    if table is None or not any(record["mean"] for record in table.records):
        raise NotThereError(f"no evaluation of the study {runs.study} is done yet")
    panels = _panels(table.records)
    with styled():
        figure = new_figure(2.75)
        all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (group, records) in zip(all_axes, panels.items(), strict=True):
            _draw(axes, records, title=group if len(panels) > 1 else "")
        all_axes[0].set_ylabel("top-1 or recall (%)" if _has_recall(table.records) else "top-1 accuracy (%)")
        handles, labels = all_axes[0].get_legend_handles_labels()
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
        if record["metric"]:  # else this cell of the table has no evaluation
            panels.setdefault(record["group"], []).append(record)
    return panels


def _has_recall(records: Sequence[Mapping[str, Any]]) -> bool:
    return any("recall" in record["metric"] for record in records)


def _draw(axes: Axes, records: Sequence[Mapping[str, Any]], *, title: str) -> None:
    rows = [*dict.fromkeys(record["row"] for record in records if record["is_floor"] == "false")]
    metrics = [*dict.fromkeys(record["metric"] for record in records)]
    for number, metric in enumerate(metrics):
        of_metric = [record for record in records if record["metric"] == metric]
        style = marker_style(number)
        shift = SPREAD * (number - (len(metrics) - 1) / 2)
        points = [
            (rows.index(one["row"]) + shift, one) for one in of_metric if one["is_floor"] == "false" and one["mean"]
        ]
        axes.plot(
            [x for x, _ in points],
            [100 * float(one["mean"]) for _, one in points],
            linestyle="none",
            label=_name(metric),
            **style,
        )
        for x, one in points:
            if one["std"]:  # one seed has no spread, and a bar of no length would look like certainty
                axes.errorbar(
                    x,
                    100 * float(one["mean"]),
                    yerr=100 * float(one["std"]),
                    fmt="none",
                    ecolor=style["color"],
                    elinewidth=1,
                    capsize=2.5,
                )
        for one in of_metric:
            if one["is_floor"] == "true" and one["mean"]:
                _draw_random_init(axes, 100 * float(one["mean"]), right=len(rows) - 0.45, style=style)
    axes.plot([], [], linestyle=RANDOM_INIT_LINE, color=RANDOM_INIT_COLOR, linewidth=0.9, label="untrained (floor)")
    axes.set_xticks(range(len(rows)), rows)
    axes.set_xlim(-0.5, len(rows) - 0.45)
    axes.set_xlabel("temporal relaxation")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, color=RANDOM_INIT_COLOR)


def _draw_random_init(axes: Axes, height: float, *, right: float, style: MarkerStyle) -> None:
    """Draw a random-init baseline: a dashed line that ends in a marker."""
    axes.axhline(height, color=style["color"], linestyle=RANDOM_INIT_LINE, linewidth=0.9)
    axes.plot(right, height, fillstyle="none", clip_on=False, markersize=3.5, **style)


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
