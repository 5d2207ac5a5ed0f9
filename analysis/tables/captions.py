"""What stands above and below a table: what its numbers are, over how many seeds, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.runs import StudyRuns
from analysis.tables.published import shown
from analysis.tables.results import PROTOCOLS, Result
from analysis.tables.series import Series


def caption_of(question: str, series: Sequence[Series], *, has_difference: bool = False) -> str:
    """Return the caption of a table of these series."""
    trained = [one for one in series if not one.is_floor]
    data = dict.fromkeys(shown(one.facts["downstream_data"]) + folds_text(one.column.folds) for one in series)
    measures = dict.fromkeys("R@k" if one.facts["protocol"] == "retrieval" else "Top-1 accuracy" for one in series)
    sentences = [
        question,
        f"{' or '.join(measures)} in % ({', '.join(_listed(series, 'scale'))} scale);",
        f"pretrained on {', '.join(map(shown, _listed(trained, 'pretrain_data'))) or 'nothing yet'},",
        f"evaluated on {', '.join(data)}; v = video, a = audio, a+v = both.",
        spread_text([one.result for one in trained]),
    ]
    if has_difference:
        sentences.append(
            "Differences: with less without, paired by seed, ± the 95 % confidence interval of a paired t-test;"
            " of one seed (n=1) nothing can be said of its spread."
        )
    if any(one.is_floor for one in series):
        sentences.append("Untrained: the same evaluation of backbones that have learnt nothing.")
    if set(_listed(series, "scale")) != {"paper"}:
        sentences.append("Not at the paper's scale: not comparable with its numbers, which are left out.")
    return " ".join(sentences)


def _listed(series: Iterable[Series], name: str) -> list[str]:
    return list(dict.fromkeys(one.facts[name] for one in series if one.facts[name]))


def spread_text(results: Iterable[Result]) -> str:
    """Return the sentence that says over how many seeds the numbers are."""
    numbers = {len(result.values) for result in results if result.values}
    if not numbers:
        return "No result yet."
    if numbers == {1}:
        return "One seed a cell (n = 1), so there is no ±."
    return f"Mean ± sample standard deviation over n seeds (up to {max(numbers)}); no ± where n = 1."


def folds_text(folds: Sequence[int]) -> str:
    """Say which folds a number is the mean of."""
    numbers = ", ".join(map(str, folds))
    return f" (mean of folds {numbers})" if len(folds) > 1 else f" (fold {numbers})" if numbers else ""


def notes_of(runs: StudyRuns, placed: Mapping[tuple[str, tuple[str, str]], Series]) -> tuple[str, ...]:
    """Return the footnotes: how each dataset was evaluated, which seeds are missing and why, several commits."""
    protocols = dict.fromkeys(_protocol_note(one) for one in placed.values())
    results = [(row, f"{group} {label}".strip(), one.result) for (row, (group, label)), one in placed.items()]
    columns = {column for _, column in placed}
    return (*sorted(protocols), *missing_notes(results, num_columns=len(columns)), *commit_notes(runs))


def missing_notes(results: Iterable[tuple[str, str, Result]], *, num_columns: int) -> list[str]:
    """Return a line for each seed that is missing, and why, where the cells have no room for it.

    Args:
        results: row, column and what is known of the cell.
        num_columns: of the table; what is said of all of them names none.
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
    """Return a line that names the commits that the runs come from, where they are several."""
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
