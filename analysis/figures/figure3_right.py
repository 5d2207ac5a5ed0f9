"""Figure 3, right: top-1 against epochs of pretraining, without and with L_async."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures.base import Drawing, FigureOptions, NotThereError, arm_name, arms, first, plain, weight_of
from analysis.figures.style import marker_style, new_figure, styled
from analysis.runs import StudyRuns, reason_missing
from analysis.tables.measurements import PROTOCOLS

KEY = ["scale", "method", "pretrain_data", "backbone", "downstream_data", "protocol", "segments"]
"""Columns that all evaluations of one panel share."""
NAMES = {"v": "video", "a": "audio", "av": "audio + video"}
PANEL_HEIGHT_IN = 2.3


@dataclass(frozen=True)
class Panel:
    """One evaluation by one modality along the pretrainings.

    Attributes:
        facts: the columns that its evaluations share (``KEY``).
        modality: ``v``, ``a`` or ``av``.
        folds: folds that every evaluation covers; a number is their mean. Empty if the dataset has none.
        rows: its evaluations, with the columns ``weight`` and ``after`` (epochs, a number).
    """

    facts: dict[str, str]
    modality: str
    folds: tuple[int, ...]
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        """The heading."""
        return f"{NAMES[self.modality]}, {self.facts['downstream_data']}"

    def value(self, row: dict[str, Any]) -> float | None:
        """Return the top-1 accuracy of an evaluation; None if it has none."""
        if row["status"] != "FINISHED":
            return None
        name = f"eval/top1_{self.modality}"
        names = [name] if self.folds in ((), row["folds"]) else [f"{name}_fold{fold}" for fold in self.folds]
        values = [value for name in names if (value := row.get(name)) is not None and value == value]
        return statistics.mean(values) if len(values) == len(names) else None


def build(runs: StudyRuns, options: FigureOptions) -> Drawing:
    """Draw the figure.

    Raises:
        NotThereError: if no evaluation is along the pretrainings.
    """
    del options
    weights = arms(runs)
    panels = _panels(runs)
    if not panels:
        raise NotThereError(f"no pretraining of the study {runs.study} has been evaluated on its way (weights.epoch)")
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    missing: list[str] = []
    with styled():
        figure = new_figure(PANEL_HEIGHT_IN * num_rows + 0.3)
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes, panel in zip(grid, panels, strict=False):
            for number, weight in enumerate(weights):
                missing += _curve(axes, panel, weight, number, runs)
            _finish(axes, panel)
        for axes in list(grid)[len(panels) :]:
            axes.remove()
        for axes in list(figure.axes)[::num_columns]:
            axes.set_ylabel("top-1 accuracy (%)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(weights))
    return Drawing(
        name="figure3-right",
        title="Figure 3, right",
        figure=figure,
        caption=_caption(panels),
        runs=_runs(panels),
        missing=tuple(missing),
    )


def _panels(runs: StudyRuns) -> list[Panel]:
    frame = runs.evaluations
    frame = frame[frame["protocol"].isin(["linear", *(name for name in PROTOCOLS if name.startswith("svm"))])]
    frame = frame.assign(weight=frame["point"].map(weight_of), after=[_after(row, runs) for _, row in frame.iterrows()])
    frame = frame[frame["weight"].notna() & frame["after"].notna()]
    panels = []
    for values, rows in frame.groupby(KEY, sort=True):
        if not (rows["epoch"] != "").any():
            continue  # only the end was evaluated: Table 1 has it
        on_the_way = rows[rows["epoch"] != ""]
        covered = [set(folds) for folds in rows["folds"]]
        folds = tuple(sorted(set.intersection(*covered)))
        listed = [set(modalities) for modalities in on_the_way["modalities"]]
        for modality in NAMES:
            if any(modality in modalities for modalities in listed):
                panels.append(Panel(dict(zip(KEY, map(str, values), strict=True)), modality, folds, rows))
    return panels


def _after(row: pd.Series, runs: StudyRuns) -> float | None:
    """Return the number of pretraining epochs before an evaluation."""
    if row["epoch"]:
        return float(row["epoch"])
    above = runs.pretrainings[runs.pretrainings["identity"] == row["parent_identity"]]
    return float(above["epochs"].iloc[0]) if len(above) and above["epochs"].iloc[0] else None


def _curve(axes: Axes, panel: Panel, weight: float, number: int, runs: StudyRuns) -> list[str]:
    """Draw one curve; return a line for each missing point."""
    ours = panel.rows[panel.rows["weight"] == weight]
    seeds = sorted(set(map(int, panel.rows["seed"])))
    points, missing = [], []
    for after in sorted(set(panel.rows["after"])):
        means = []
        for seed in seeds:
            rows = [row.to_dict() for _, row in ours[(ours["after"] == after) & (ours["seed"] == seed)].iterrows()]
            # Several rows of one seed only if evaluations differ in a column outside the key.
            values = [value for row in rows if (value := panel.value(row)) is not None]
            if values:
                means.append(100 * statistics.mean(values))
            else:
                missing.append(_missing(panel, weight, after, seed, rows[0] if rows else None, runs))
        if means:
            points.append((after, means))
    style = marker_style(number + (number > 0))  # blue, then green: distinct in gray as well
    for after, values in points:
        if len(values) > 1:  # one seed has no spread, and a bar of no length would look like certainty
            axes.errorbar(
                after,
                statistics.mean(values),
                yerr=statistics.stdev(values),
                fmt="none",
                ecolor=style["color"],
                elinewidth=1,
                capsize=2.5,
            )
    axes.plot(
        [after for after, _ in points],
        [statistics.mean(values) for _, values in points],
        label=arm_name(weight),
        linestyle="--" if number == 0 else "-",
        markerfacecolor="white" if number == 0 else style["color"],
        **style,
    )
    return missing


def _missing(panel: Panel, weight: float, after: float, seed: int, row: dict[str, Any] | None, runs: StudyRuns) -> str:
    above = runs.pretrainings[runs.pretrainings["point"].map(weight_of) == weight]
    reason, error = reason_missing(row, first(above[above["seed"] == seed]))
    where = f"{panel.title}, {plain(arm_name(weight))}, epoch {after:g}, seed {seed}"
    return f"{where}: {reason}{f': {error}' if error else ''}"


def _finish(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel("epochs of pretraining")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlim(left=-0.02 * max(panel.rows["after"]))


def _caption(panels: Sequence[Panel]) -> str:
    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(panel.facts[name] for panel in panels))

    protocols = dict.fromkeys(PROTOCOLS.get(panel.facts["protocol"], panel.facts["protocol"]) for panel in panels)
    covered = {panel.facts["downstream_data"]: panel.folds for panel in panels if panel.folds}
    folds = [f" {data}: fold {', '.join(map(str, numbers))}." for data, numbers in covered.items()]
    spread = max(_num_seeds(panel) for panel in panels)
    several = (
        f"Points are means over up to {spread} seeds, error bars one sample standard deviation, where n > 1."
        if spread > 1
        else "One seed a point (n = 1), so there are no error bars."
    )
    return (
        f"Top-1 accuracy (%) against epochs of pretraining, without and with L_async, by {', by '.join(protocols)};"
        f" {each('scale')} scale, pretrained on {each('pretrain_data')}."
        f"{''.join(folds)} Epoch 0: the weights before the first step. {several}"
    )


def _num_seeds(panel: Panel) -> int:
    done = panel.rows[panel.rows["status"] == "FINISHED"]
    return int(done.groupby(["weight", "after"])["seed"].nunique().max()) if len(done) else 0


def _runs(panels: Sequence[Panel]) -> dict[str, pd.DataFrame]:
    found = {}
    for panel in panels:
        done = panel.rows[panel.rows["status"] == "FINISHED"]
        for (weight, after), rows in done.groupby(["weight", "after"], sort=True):
            where = f"{panel.facts['downstream_data']}, {plain(arm_name(weight))}, epoch {after:g}"
            found[where] = rows
    return found
