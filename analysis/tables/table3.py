"""Table 3, how much temporal relaxation is best (PAPER section 6; the paper shows this study as a figure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from analysis.runs import BY_TEST, StudyRuns
from analysis.tables.base import Cell, Row, Table
from analysis.tables.captions import commit_notes, folds_text, missing_notes, spread_text
from analysis.tables.results import PROTOCOLS, Column, Result, columns_of, result_of

if TYPE_CHECKING:
    import pandas as pd

RELAXATIONS = ("none", "mild", "medium", "mixed", "extreme")
"""The paper's, in its order. They stand in the table even where nothing has been run; others follow when they have."""
FLOOR = "untrained"
KEY = ("scale", "method", "pretrain_data", "pretrain_family", "downstream_data", "protocol", "frames", "family")
"""What results must have in common to stand in one column: all of it."""
FLOOR_KEY = ("scale", "downstream_data", "protocol", "frames", "family")
"""The same for untrained backbones, which no pretraining precedes."""


def build(runs: StudyRuns) -> Table:
    """Make the table from the runs of a relaxation study."""
    columns = _columns(runs.evaluations)
    relaxations = _relaxations(runs)
    results = {
        (row, column): _result(runs, row, columns[column])
        for row in [*relaxations, FLOOR]
        for column in range(len(columns))
    }
    best = {
        column: max((results[row, column].printed_mean for row in relaxations), key=lambda text: float(text or -1))
        for column in range(len(columns))
    }

    def row(label: str, *, is_floor: bool = False) -> Row:
        cells = [_cell(results[label, column], best="" if is_floor else best[column]) for column in range(len(columns))]
        return Row("untrained (floor)" if is_floor else label, tuple(cells), is_floor)

    return Table(
        name="table3",
        title="Table 3",
        caption=_caption(columns, results),
        row_header="relaxation",
        columns=tuple((column.group, column.label) for column in columns),
        rows=(*map(row, relaxations), row(FLOOR, is_floor=True)),
        notes=_notes(runs, columns, results),
        records=tuple(
            _record(runs, label, columns[column], result, floor=results[FLOOR, column], best=best[column])
            for (label, column), result in results.items()
        ),
    )


def _columns(evaluations: pd.DataFrame) -> list[Column]:
    trained = evaluations[evaluations["relaxation"] != ""]
    keys = [dict(zip(KEY, values, strict=True)) for values in sorted(set(_tuples(trained, KEY)))]
    covered = {tuple(key[name] for name in FLOOR_KEY) for key in keys}
    for values in sorted(set(_tuples(evaluations[evaluations["method"] == FLOOR], FLOOR_KEY)) - covered):
        keys.append({**dict.fromkeys(KEY, ""), **dict(zip(FLOOR_KEY, values, strict=True))})
    groups = _groups(keys)
    found = [columns_of(key, group, _of_downstream(evaluations, key)) for key, group in zip(keys, groups, strict=True)]
    return [column for columns in found for column in columns]


def _groups(keys: list[dict[str, str]]) -> list[str]:
    """Name the columns: the downstream dataset, and whatever else tells two of them apart."""

    def varies(name: str) -> bool:
        return len({key[name] for key in keys if key[name]}) > 1

    names = []
    for key in keys:
        name = f"{key['pretrain_data']} → " if varies("pretrain_data") and key["pretrain_data"] else ""
        name += key["downstream_data"]
        parts = [part for part in ("method", "scale", "protocol") if varies(part) or key[part].endswith(BY_TEST)]
        extra = [key[part] for part in parts if key[part]]
        extra += [f"{key['frames']} frames"] if varies("frames") and key["frames"] else []
        names.append(f"{name} ({', '.join(extra)})" if extra else name)
    if len(set(names)) == len(names):
        return names
    return [
        f"{name} [{'/'.join(filter(None, (key['pretrain_family'], key['family'])))}]" if names.count(name) > 1 else name
        for name, key in zip(names, keys, strict=True)
    ]


def _tuples(frame: pd.DataFrame, columns: Iterable[str]) -> list[tuple[str, ...]]:
    return list(frame[list(columns)].itertuples(index=False, name=None))


def _matching(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def _of_downstream(evaluations: pd.DataFrame, key: Mapping[str, str]) -> pd.DataFrame:
    return _matching(evaluations, {name: key[name] for name in FLOOR_KEY})


def _relaxations(runs: StudyRuns) -> list[str]:
    known = set(runs.evaluations["relaxation"]) | set(runs.pretrainings["relaxation"])
    return [*RELAXATIONS, *sorted(known - {"", *RELAXATIONS})]


def _seeds(runs: StudyRuns) -> list[int]:
    learnt = runs.evaluations[runs.evaluations["relaxation"] != ""]
    return sorted({*map(int, learnt["seed"]), *map(int, runs.pretrainings["seed"])})


def _result(runs: StudyRuns, label: str, column: Column) -> Result:
    if label == FLOOR:
        found = _matching(_of_downstream(runs.evaluations, column.key), {"method": FLOOR})
        pretrainings = runs.pretrainings[:0]
        seeds = sorted(set(map(int, found["seed"]))) or [0]
    else:
        found = _matching(runs.evaluations, {**column.key, "relaxation": label})
        pretrainings = _matching(
            runs.pretrainings,
            {"relaxation": label, **{name: column.key[name] for name in ("method", "pretrain_family")}},
        )
        seeds = _seeds(runs) or [0]
    return result_of(column, found, pretrainings, seeds=seeds)


def _cell(result: Result, *, best: str) -> Cell:
    if result.mean is None:
        return Cell(result.text, is_missing=True)
    return Cell(result.text, is_best=result.printed_mean == best, run_ids=result.run_ids)


def _caption(columns: list[Column], results: Mapping[tuple[str, int], Result]) -> str:
    def listed(name: str) -> str:
        return ", ".join(dict.fromkeys(column.key[name] for column in columns if column.key[name])) or "nothing yet"

    protocols = dict.fromkeys(PROTOCOLS.get(column.key["protocol"], column.key["protocol"]) for column in columns)
    measures = dict.fromkeys("R@k" if column.key["protocol"] == "retrieval" else "Top-1 accuracy" for column in columns)
    data = dict.fromkeys(column.key["downstream_data"] + folds_text(column.folds) for column in columns)
    sentences = [
        "How much temporal relaxation is best?",
        f"{' or '.join(measures)} in % by {', by '.join(protocols)}; {listed('scale')} scale;",
        f"pretrained on {listed('pretrain_data')}, evaluated on {', '.join(data)};",
        "v = video, a = audio, a+v = both.",
        spread_text(result for (row, _), result in results.items() if row != FLOOR),
        "Bold: best of a column. The floor is the same evaluation of untrained backbones.",
        "The paper shows this study as a figure, so there is no published number beside these.",
    ]
    if {column.key["scale"] for column in columns} != {"paper"}:
        sentences.append("Not at the paper's scale: not comparable with its numbers.")
    return " ".join(sentences)


def _notes(runs: StudyRuns, columns: list[Column], results: Mapping[tuple[str, int], Result]) -> tuple[str, ...]:
    names = [f"{column.group} {column.label}" for column in columns]
    missing = missing_notes(((row, names[at], one) for (row, at), one in results.items()), num_columns=len(columns))
    return (*missing, *commit_notes(runs))


def _record(runs: StudyRuns, label: str, column: Column, result: Result, *, floor: Result, best: str) -> dict[str, Any]:
    """Return a cell with everything behind it: every number leads back to its runs."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.6f}"

    is_floor = label == FLOOR
    gain = None if is_floor or result.mean is None or floor.mean is None else 100 * (result.mean - floor.mean)
    return {
        "table": "3",
        "study": runs.study,
        "fingerprint": runs.fingerprint,
        "row": label,
        "is_floor": str(is_floor).lower(),
        "modality": column.modality,
        **column.key,
        "metric": column.metric,
        "folds": " ".join(map(str, column.folds)),
        "mean": number(result.mean),
        "std": number(result.std),
        "n": len(result.values),
        "seeds": " ".join(map(str, result.values)),
        "is_best": str(bool(not is_floor and result.values and result.printed_mean == best)).lower(),
        "gain_over_floor_points": number(gain),
        "run_ids": " ".join(result.run_ids),
        "missing": "; ".join(f"seed {seed}: {gap.text}" for seed, gap in result.missing.items()),
    }
