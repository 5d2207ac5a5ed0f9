"""What a figure is before it is a file, and what is written beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs import StudyRuns, reason_missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
from crisscross.run.run_dir import RunDirectory


class NotThereError(LookupError):
    """The runs have nothing for a figure; the message is half a line that says what is missing, and why."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a figure beside the runs.

    Attributes:
        runs_root: folder of the run directories, for figures that need more than numbers.
        clips: paths in the manifest to show, where a figure shows clips; empty = its own choice.
    """

    runs_root: Path
    clips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure with all that goes with it.

    Attributes:
        name: of the files it is written to, such as ``figure3-left``.
        title: such as ``Figure 3, left``.
        figure: the picture.
        caption: what it shows.
        runs: the rows of the frame behind it, by what they are in it: ``without L_async``.
        missing: a line for each thing that it should show and does not, with the reason.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    runs: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


Build = Callable[[StudyRuns, Wanted], Drawing]
"""Makes a figure of a study; raises ``NotThereError`` where the runs have nothing for it."""

WEIGHT = "method.async_weight"
"""The axis of the study of L_async."""


def caption_text(drawing: Drawing, runs: StudyRuns) -> str:
    """Return the text that is written beside a figure: what it shows, of which runs, and what is missing."""
    lines = [f"**{drawing.title}.** {drawing.caption}", "", f"Study {runs.study}, variant {runs.fingerprint}."]
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
    """Return the weight of L_async at a run's point of its study; None for untrained backbones and other studies."""
    known = json.loads(point) if point.startswith("{") else {}
    return float(known[WEIGHT]) if WEIGHT in known else None


def arm_name(weight: float) -> str:
    """Return what a weight of L_async is called."""
    if weight == 0:
        return "without $L_{async}$"
    return "with $L_{async}$" if weight == 1 else f"with $L_{{async}}$, weight {weight:g}"


def plain(text: str) -> str:
    """Return a label without the signs that set its mathematics."""
    return text.replace("$", "").replace("{", "").replace("}", "")


def arms(runs: StudyRuns) -> dict[float, str]:
    """Return the weights of a study of L_async, ascending, and what they are called.

    Raises:
        NotThereError: fewer than two are there.
    """
    points = [*runs.evaluations["point"], *runs.pretrainings["point"]]
    weights = sorted({weight for point in points if (weight := weight_of(point)) is not None})
    if len(weights) < 2:
        raise NotThereError(f"the study {runs.study} has runs of {len(weights)} weight(s) of L_async, not of two")
    return {weight: arm_name(weight) for weight in weights}


def pair(runs: StudyRuns, stream: str) -> dict[str, pd.DataFrame]:
    """Return the two finished evaluations, without and with L_async, that a comparison of two models is about.

    They are of the end of the pretrainings, of the smallest seed that both have, on the dataset (the first by name)
    whose clips were evaluated by the stream; with both streams, where there is such a dataset.

    Args:
        runs: the study.
        stream: ``v`` or ``a``.

    Returns:
        One row each, by name of the arm.

    Raises:
        NotThereError: saying what one of the two lacks.
    """
    weights = arms(runs)
    chosen = {min(weights), 1.0 if 1.0 in weights else max(weights)}
    frame = runs.evaluations
    frame = frame[(frame["epoch"] == "") & frame["point"].map(weight_of).isin(chosen).astype(bool)]
    frame = frame[frame["modalities"].map(lambda asked: any(stream in one for one in asked)).astype(bool)]
    frame = frame[frame["protocol"] != "finetune"]
    done = frame[frame["status"] == "FINISHED"]
    key = ["downstream_data", "protocol", "seed"]
    order = done.assign(one=done["modalities"].map(lambda asked: {"v", "a"} - set("".join(asked)) != set()))
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
    """Return the first row, None where there is none."""
    return frame.iloc[0].to_dict() if len(frame) else None


def listed(things: Iterable[Any]) -> str:
    """Return things one after the other: ``a, b and c``."""
    texts = list(map(str, things))
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1]))) if texts else ""


def run_directory(row: Mapping[str, Any], runs_root: Path) -> RunDirectory:
    """Return the run directory of an experiment.

    Args:
        row: of the frame (``kind`` and ``identity``).
        runs_root: folder of the run directories.

    Raises:
        NotThereError: it is not there.
    """
    identity = row["identity"]
    for path in sorted((runs_root / row["kind"]).glob(f"*-{identity[:12]}")):
        if (path / "run.json").is_file() and RunDirectory(path).identity == identity:
            return RunDirectory.open(path)
    raise NotThereError(
        f"the run directory of {identity[:12]} is not below {runs_root}: say where it is with --runs-root"
    )
