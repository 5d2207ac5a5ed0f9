"""Captions and footnotes of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.runs import StudyRuns
from analysis.tables.measurements import PROTOCOLS, Result, Series
from analysis.tables.published import shown
from crisscross.run.state import RunState

DIFFERENCES = {"difference": "Difference: with less without,", "over random init": "Over floor: how far above it,"}
"""First words about the columns of differences in a caption, by kind of column."""
PAIRED = (
    "paired by seed, ± the 95 % confidence interval of a paired t-test;"
    " of one seed (n=1) nothing can be said of its spread."
)
STATES = {
    "FINISHED": RunState.DONE,
    "RUNNING": RunState.RUNNING,
    "SCHEDULED": RunState.QUEUED,
    "FAILED": RunState.FAILED,
}
"""State of a run by MLflow's status, in the order of a note."""


def about_of(question: str, series: Sequence[Series]) -> str:
    """Return a caption's first half: question, measure, scale, data, seeds."""
    trained = [one for one in series if not one.is_random_init]
    data = dict.fromkeys(shown(one.facts["downstream_data"]) + folds_text(one.column.folds) for one in series)
    measures = dict.fromkeys("R@k" if one.facts["protocol"] == "retrieval" else "Top-1 accuracy" for one in series)
    sentences = [
        question,
        f"{' or '.join(measures)} in % ({', '.join(_listed(series, 'scale'))} scale);",
        f"pretrained on {', '.join(map(shown, _listed(trained, 'pretrain_data'))) or 'nothing yet'},",
        f"evaluated on {', '.join(data)}; v = video, a = audio, a+v = both.",
        spread_text([one.result for one in trained]),
    ]
    return " ".join(sentences)


def reading_help(series: Sequence[Series], *, columns: Iterable[str] = (), best: str = "", remark: str = "") -> str:
    """Return the second half of a caption: how to read it.

    Args:
        series: all of its cells.
        columns: kinds of its columns; the text explains ``difference``, ``over random init`` and ``less paper``.
        best: whether the best of each ``row`` or ``column`` is bold; empty = nothing is.
        remark: sentence about this table.
    """
    kinds = set(columns)
    sentences = [f"Bold: best of a {best}."] if best else []
    if any(one.is_random_init for one in series):
        sentences.append("Untrained, the floor: the same evaluation of backbones that have learnt nothing.")
    sentences += [f"{text} {PAIRED}" for kind, text in DIFFERENCES.items() if kind in kinds]
    if "less paper" in kinds:
        sentences.append("Less paper: the measured mean less the published number, which has no spread.")
    sentences += [remark] if remark else []
    if set(_listed(series, "scale")) != {"paper"}:
        sentences.append("Not at the paper's scale: not comparable with its numbers, which are left out.")
    return " ".join(sentences)


def _listed(series: Iterable[Series], name: str) -> list[str]:
    return list(dict.fromkeys(one.facts[name] for one in series if one.facts[name]))


def spread_text(results: Iterable[Result]) -> str:
    """Return the sentence about the number of seeds."""
    numbers = {len(result.values) for result in results if result.values}
    if not numbers:
        return "No result yet."
    if numbers == {1}:
        return "One seed a cell (n = 1), so there is no ±."
    return f"Mean ± sample standard deviation over n seeds (up to {max(numbers)}); no ± where n = 1."


def folds_text(folds: Sequence[int]) -> str:
    """Return the words about the folds behind a number."""
    numbers = ", ".join(map(str, folds))
    return f" (mean of folds {numbers})" if len(folds) > 1 else f" (fold {numbers})" if numbers else ""


def notes_of(runs: StudyRuns, series_at: Mapping[tuple[str, tuple[str, str]], Series]) -> tuple[str, ...]:
    """Return the footnotes: protocols, progress, missing results, commits."""
    protocols = dict.fromkeys(_protocol_note(one) for one in series_at.values())
    results = [(row, f"{group} {label}".strip(), one.result) for (row, (group, label)), one in series_at.items()]
    columns = {column for _, column in series_at}
    missing = missing_notes(results, num_columns=len(columns))
    return (*sorted(protocols), *progress_notes(runs), *missing, *commit_notes(runs))


def progress_notes(runs: StudyRuns) -> list[str]:
    """Return a line about the study's progress, unless it is complete."""
    parts = []
    for what, frame in (("pretrainings", runs.pretrainings), ("evaluations", runs.evaluations)):
        states = [STATES.get(row.status, row.state or RunState.INTERRUPTED) for row in frame.itertuples()]
        counts = {state: states.count(state) for state in [*STATES.values(), *sorted(set(states))]}
        num_done = counts.pop(RunState.DONE)
        if num_done < len(states):
            others = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
            parts.append(f"{num_done} of {len(states)} {what} are done ({others})")
    return [f"The study is not complete: {'; '.join(parts)}."] if parts else []


def missing_notes(results: Iterable[tuple[str, str, Result]], *, num_columns: int) -> list[str]:
    """Return a line per missing seed that its cell cannot explain.

    Args:
        results: row, column and result of each cell.
        num_columns: of the table; a line about all columns names none.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row, column, result in results:
        for seed, gap in result.missing.items():
            if gap.error or result.values or gap.partial is not None:
                found.setdefault((f"{row}, seed {seed}", gap.text), []).append(column)
    return [
        f"{who}{'' if len(where) == num_columns else ' (' + ', '.join(where) + ')'}: {what}"
        for (who, what), where in found.items()
    ]


def commit_notes(runs: StudyRuns) -> list[str]:
    """Return a line with the runs' commits, if there are several."""
    commits = sorted({*runs.evaluations["git_commit"], *runs.pretrainings["git_commit"]} - {""})
    listed = ", ".join(commit[:8] for commit in commits)
    return [f"The runs come from {len(commits)} commits: {listed}."] if len(commits) > 1 else []


def _protocol_note(series: Series) -> str:
    facts = series.facts
    parts = [PROTOCOLS.get(facts["protocol"], facts["protocol"])]
    parts += [f"{facts['segments']} segments a clip"] if facts["segments"] else []
    parts += [f"{facts['frames']} frames"] if facts["frames"] else []
    parts += [f"{facts['distance']} distance"] if facts["distance"] else []
    if facts["protocol"] == "svm":
        parts.append("C chosen by cross-validation inside the training split")
    return f"{shown(facts['downstream_data'])}: {', '.join(parts)}."
