"""MLflow's page of an experiment: its description, and three views in the menu "Views".

MLflow's UI (3.17) saves a view as a tag of the experiment, ``mlflow.sharedViewState.<key>``: a name and the state of
the page. ``#/experiments/<id>/runs?viewStateShareKey=<key>`` opens it; the choice of table or charts is part of the
address, not of the state. The format of a state is not documented: tests/ui opens the views in a browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOR_OF_RELAXATION = {
    "none": "#000000",
    "mild": "#E69F00",
    "medium": "#0072B2",
    "mixed": "#009E73",
    "extreme": "#CC79A7",
}
"""Okabe and Ito's colors, safe for color-blind readers; MLflow's own are random, often two alike."""

UNTRAINED = "untrained"
"""Value of the parameter ``relaxation`` of randomly initialized networks."""

TOP1 = ("eval/top1_v", "eval/top1_a", "eval/top1_av")
RUNS_IN_CHARTS = 100
"""Most runs of a chart. ours: five relaxations of three seeds are 15; MLflow's default is 10."""


@dataclass(frozen=True)
class View:
    """A view in the menu.

    Attributes:
        key: its key in the address.
        name: its name in the menu.
        mode: ``TABLE`` or ``CHART``, how the address opens it.
        state: state of MLflow's page: filter, order, columns, groups, charts.
    """

    key: str
    name: str
    mode: str
    state: Mapping[str, Any]

    def path(self, experiment_id: str) -> str:
        """Return the path of the view, to append to the server's address."""
        mode = "" if self.mode == "TABLE" else f"&compareRunsMode={self.mode}"
        return f"#/experiments/{experiment_id}/runs?viewStateShareKey={self.key}{mode}"


def _metric(name: str) -> str:
    """Return the table's name of a metric's column."""
    return f"metrics.`{name}`"


def _chart(title: str, chart: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a page with one chart on top.

    The chart has full width. MLflow adds the charts of all metrics below.
    """
    section = {"uuid": "ours", "name": title, "display": True, "columns": 1, "cardHeight": 420}
    flags = {"isReordered": False, "isGenerated": False, "deleted": False}
    card = {"uuid": "our-chart", "metricSectionId": "ours", "isGenerated": False, "deleted": False, **chart}
    return {
        "compareRunSections": [{**section, **flags}],
        "compareRunCharts": [{**card, "runsCountToCompare": RUNS_IN_CHARTS}],
        "isAccordionReordered": True,  # else MLflow sorts the sections alphabetically
        "runsHiddenMode": "SHOW_ALL",
    }


def _runs(kind: str) -> str:
    return f"tags.kind = '{kind}' AND tags.study LIKE '%relaxation%'"


# Ordered by a metric: if ordered by time, the page folds evaluations under their pretrainings.
_EVALUATIONS = {"searchFilter": _runs("downstream"), "orderByKey": _metric("eval/top1_av"), "orderByAsc": False}
_COLUMNS = {"attributes.`Run Name`": 260, "runDateAndNestInfo": 130, **{_metric(name): 170 for name in TOP1}}

VIEWS: Sequence[View] = (
    View(
        key="loss",
        name="Loss of the relaxations",
        mode="CHART",
        state={
            "searchFilter": _runs("pretrain"),
            "orderByKey": "attributes.start_time",
            "orderByAsc": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 60, "selectedXAxisMetricKey": ""},
            **_chart(
                "The loss of each relaxation",
                {
                    "type": "LINE",
                    "metricKey": "loss/total",
                    "selectedMetricKeys": ["loss/total"],
                    "xAxisKey": "step",
                    "useGlobalXaxisKey": True,
                    "useGlobalLineSmoothing": True,
                },
            ),
        },
    ),
    View(
        key="relaxation",
        name="Grouped by relaxation",
        mode="TABLE",
        state={
            **_EVALUATIONS,
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "param", "groupByData": "relaxation"}],
            },
            "groupsExpanded": {f"param.relaxation.{name}": False for name in (*COLOR_OF_RELAXATION, UNTRAINED)},
            "selectedColumns": [_metric(name) for name in TOP1],
            "columnOrder": list(_COLUMNS),
            "columnWidths": _COLUMNS,
        },
    ),
    View(
        key="sweep",
        name="Seed, relaxation, top-1",
        mode="CHART",
        state={
            **_EVALUATIONS,
            **_chart(
                "Seed, relaxation, top-1",
                {
                    "type": "PARALLEL",
                    "selectedParams": ["seed", "relaxation"],
                    "selectedMetrics": list(TOP1),
                    "showAllRuns": True,
                },
            ),
        },
    ),
)

ABOUT = """\
Self-supervised audio-visual learning with relaxed cross-modal synchronicity.

Pretrainings (`tags.kind = 'pretrain'`) and, below each, its evaluations. Group by the parameter `relaxation` or by \
the tag `method` to average over seeds; the tag `study` says of which studies a run is part. Figures, tables and the \
page of them all are artifacts of runs of those kinds (`tags.kind = 'figures'`).

    uv run launch/sweep_relaxation.py     run the study of Table 3, or what is missing of it
    uv run launch/reproduce_paper.py      all studies
    uv run analysis/make_tables.py        print the tables from these runs
"""


def run_tags(studies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a run's tags for the browser.

    They are the color of its relaxation, if studied.

    Args:
        studies: the run's studies, as in its ``run.json``.
    """
    studied = [entry.get("point", {}).get("relaxation") for entry in studies.values()]
    colors = [COLOR_OF_RELAXATION[name] for name in studied if name in COLOR_OF_RELAXATION]
    return {"mlflow.runColor": colors[0]} if colors else {}


def view_tags(experiment_id: str) -> dict[str, str]:
    """Return the tags of an MLflow experiment: its description and the views."""
    links = " · ".join(f"[{view.name}]({view.path(experiment_id)})" for view in VIEWS)
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "eval/top1_av",
        "mlflow.note.content": f"CrissCross. {links}\n\n{ABOUT}",  # MLflow shows the first line, the rest on a click
    }
    for place, view in enumerate(VIEWS):
        # The menu has the newest on top.
        saved = {"name": view.name, "createdAt": len(VIEWS) - place, "state": json.dumps(view.state)}
        tags[f"mlflow.sharedViewState.{view.key}"] = json.dumps(saved)
    return tags
