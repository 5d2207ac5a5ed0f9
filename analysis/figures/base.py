"""Figures as data, their captions, and the lookup of their runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs import StudyRuns, reason_missing
from crisscross.run.run_dir import RunDirectory

if TYPE_CHECKING:  # matplotlib and pandas take a second to import, and --help needs neither
    import pandas as pd
    from matplotlib.figure import Figure


class NotThereError(LookupError):
    """A figure lacks its runs; the message names them and the reason."""


@dataclass(frozen=True)
class FigureOptions:
    """Options of a figure.

    Attributes:
        runs_root: folder of the run directories, for figures that need features, weights or clips.
        clips: paths in the manifest of the clips to show; empty = a fixed choice.
    """

    runs_root: Path
    clips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption and runs.

    Attributes:
        name: of its files, such as ``figure3-left``.
        title: such as ``Figure 3, left``.
        figure: the Matplotlib figure.
        caption: what it shows.
        runs: rows of the frame by their name in the figure: ``without L_async``.
        missing: a line with the reason for each missing part.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    runs: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


Build = Callable[[StudyRuns, FigureOptions], Drawing]
"""Draws a figure of a study; raises ``NotThereError`` if the store has no runs for it."""

WEIGHT = "method.async_weight"
"""The axis of the study ``async``."""


def caption_text(drawing: Drawing, runs: StudyRuns) -> str:
    """Return a figure's caption file: what it shows, its runs, missing parts."""
    lines = [f"**{drawing.title}.** {drawing.caption}", "", f"Study {runs.study}, variant {runs.study_hash}."]
    if drawing.missing:
        lines += ["", "Missing:", "", *(f"- {line}" for line in drawing.missing)]
    lines += ["", "Runs (identity, MLflow run):", ""]
    for what, rows in drawing.runs.items():
        seeds = sorted(set(map(int, rows["seed"])))
        many = f"n = {len(seeds)}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        listed = ", ".join(f"{row.identity[:12]} {row.run_id}" for row in rows.itertuples())
        lines.append(f"- {what} ({many}): {listed}")
    commits = sorted({commit for rows in drawing.runs.values() for commit in rows["git_commit"] if commit})
    if commits:
        lines += ["", f"Made by commit{'s' if len(commits) > 1 else ''} {', '.join(commit[:8] for commit in commits)}."]
    return "\n".join(lines) + "\n"


def weight_of(point: str) -> float | None:
    """Return a run's weight of L_async; None if it has none.

    Args:
        point: the values on the axes of the study, as JSON.
    """
    known = json.loads(point) if point.startswith("{") else {}
    return float(known[WEIGHT]) if WEIGHT in known else None


def arm_name(weight: float) -> str:
    """Return the label of a weight of L_async."""
    if weight == 0:
        return "without $L_{async}$"
    return "with $L_{async}$" if weight == 1 else f"with $L_{{async}}$, weight {weight:g}"


def plain(text: str) -> str:
    """Return a label without the TeX characters of its mathematics."""
    return text.replace("$", "").replace("{", "").replace("}", "")


def arms(runs: StudyRuns) -> dict[float, str]:
    """Return the labels of a study's weights of L_async, weights ascending.

    Raises:
        NotThereError: if the study has runs of fewer than two weights.
    """
    points = [*runs.evaluations["point"], *runs.pretrainings["point"]]
    weights = sorted({weight for point in points if (weight := weight_of(point)) is not None})
    if len(weights) < 2:
        raise NotThereError(f"the study {runs.study} has runs of {len(weights)} weight(s) of L_async, not of two")
    return {weight: arm_name(weight) for weight in weights}


def pair(runs: StudyRuns, stream: str) -> dict[str, pd.DataFrame]:
    """Return the two finished evaluations to compare: without and with L_async.

    They evaluate the end of the pretrainings, with the smallest common seed, on the first dataset by name whose clips
    have the stream. Datasets with both streams come first.

    Args:
        runs: the study.
        stream: ``v`` or ``a``.

    Returns:
        A frame of one row for each, by label.

    Raises:
        NotThereError: if one of the two is missing or not finished.
    """
    weights = arms(runs)
    chosen = {min(weights), 1.0 if 1.0 in weights else max(weights)}
    frame = runs.evaluations
    frame = frame[(frame["epoch"] == "") & frame["point"].map(weight_of).isin(chosen).astype(bool)]
    frame = frame[frame["modalities"].map(lambda modalities: any(stream in one for one in modalities)).astype(bool)]
    frame = frame[frame["protocol"] != "finetune"]
    done = frame[frame["status"] == "FINISHED"]
    key = ["downstream_data", "protocol", "seed"]
    order = done.assign(one=done["modalities"].map(lambda modalities: {"v", "a"} - set("".join(modalities)) != set()))
    for _, rows in order.groupby(["one", *key], sort=True):
        found = {weight: rows[rows["point"].map(weight_of) == weight] for weight in sorted(chosen)}
        if all(len(rows) for rows in found.values()):
            return {weights[weight]: rows.head(1) for weight, rows in found.items()}
    raise NotThereError(_why_no_pair(runs, frame, {weight: weights[weight] for weight in sorted(chosen)}))


def _why_no_pair(runs: StudyRuns, evaluations: pd.DataFrame, weights: Mapping[float, str]) -> str:
    reasons = []
    for weight, name in weights.items():
        rows = evaluations[evaluations["point"].map(weight_of) == weight]
        if (rows["status"] == "FINISHED").any():
            continue
        above = runs.pretrainings[runs.pretrainings["point"].map(weight_of) == weight]
        reason, error = reason_missing(first(rows), first(above))
        reasons.append(f"the evaluation {plain(name)}: {reason}{f': {error}' if error else ''}")
    return "; ".join(reasons) or "no seed has been evaluated on the same clips without and with L_async"


def first(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Return the first row; None if the frame is empty."""
    return frame.iloc[0].to_dict() if len(frame) else None


def listed(items: Iterable[Any]) -> str:
    """Return items as a phrase: ``a, b and c``."""
    texts = list(map(str, items))
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1]))) if texts else ""


def run_directory(row: Mapping[str, Any], runs_root: Path) -> RunDirectory:
    """Return the run directory of an experiment.

    Args:
        row: a row of the frame (``kind`` and ``identity``).
        runs_root: folder of the run directories.

    Raises:
        NotThereError: if there is no such folder.
    """
    identity = row["identity"]
    for path in sorted((runs_root / row["kind"]).glob(f"*-{identity[:12]}")):
        if (path / "run.json").is_file() and RunDirectory(path).identity == identity:
            return RunDirectory.open(path)
    raise NotThereError(
        f"the run directory of {identity[:12]} is not below {runs_root}: give its folder with --runs-root"
    )
