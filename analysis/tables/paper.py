"""The tables of the paper: rows, columns and published numbers."""

from __future__ import annotations

from analysis.runs import StudyRuns
from analysis.tables.build import TableSpec, build_table
from analysis.tables.layout import PROTOCOL, Heading, LayoutRules, Position, standard
from analysis.tables.measurements import MODALITIES, Series, gaps_of, series_of, unevaluated
from analysis.tables.published import rows_of, shown
from analysis.tables.table import Table

RANDOM_INIT_ROW = "untrained (floor)"
WITHOUT, WITH, RANDOM_INIT_COLUMN = ("", "without"), ("", "with"), ("", "untrained")
PRETRAINING_SETS = ("kinetics_sound", "kinetics400", "audioset", "demo_quarter", "demo_half", "demo")
METHODS = ("cmacc", "xdc", "avid", "crisscross", "supervised")
RELAXATIONS = ("none", "mild", "medium", "mixed", "extreme")
"""The paper's relaxations in its order. Table 3 always lists them; others follow if they have runs."""
SAME_DATA = (*PROTOCOL, "downstream_data")
ALL_BUT_RELAXATION = (*PROTOCOL, "downstream_data", "family", "method", "pretrain_data", "pretrain_family")
NO_CURVES = "The paper shows this study as a figure, so there is no published number beside these."


def table1(runs: StudyRuns) -> Table | None:
    """Build Table 1: what does L_async bring?"""
    published: dict[Position, float] = {}
    for row in rows_of("table1"):
        label = f"{shown(row['downstream'])} {row['modality']}"
        published[label, WITHOUT] = float(row["without_async"])
        published[label, WITH] = float(row["with_async"])

    def position(series: Series) -> Position | None:
        text = series.point.get("method.async_weight", "")
        weight = 1.0 if text == "" else float(text)
        trained = {0.0: WITHOUT, 1.0: WITH}.get(weight, ("", f"with, weight {weight:g}"))
        row = f"{shown(series.facts['downstream_data'])} {series.column.label}"
        return row, RANDOM_INIT_COLUMN if series.is_random_init else trained

    columns = (RANDOM_INIT_COLUMN, WITHOUT, WITH)
    rows = list(dict.fromkeys(row for row, _ in published))
    spec = TableSpec(
        "table1",
        "Table 1",
        "What does L_async bring?",
        "evaluated on",
        LayoutRules(position, rows=True),
        rows,
        columns,
        published,
        compare=(WITHOUT, WITH),
    )
    return build_table(runs, _series(runs), spec)


def table2(runs: StudyRuns) -> Table | None:
    """Build Table 2: what does more pretraining data bring?"""

    def heading(name: str) -> Heading:
        return "pretrained on", shown(name)

    published: dict[Position, float] = {}
    for row in rows_of("table2"):
        modality = "a" if row["downstream"] in ("esc50", "dcase2013") else "v"
        for name in ("kinetics_sound", "kinetics400", "audioset"):
            published[f"{shown(row['downstream'])} {modality}", heading(name)] = float(row[name])

    def position(series: Series) -> Position | None:
        column = ("", "untrained") if series.is_random_init else heading(series.facts["pretrain_data"])
        return f"{shown(series.facts['downstream_data'])} {series.column.label}", column

    spec = TableSpec(
        "table2",
        "Table 2",
        "What does more pretraining data bring?",
        "evaluated on",
        LayoutRules(position, rows=True),
        list(dict.fromkeys(row for row, _ in published)),
        [RANDOM_INIT_COLUMN, *map(heading, PRETRAINING_SETS)],
        published,
        best="row",
    )
    return build_table(runs, _series(runs), spec)


def table3(runs: StudyRuns) -> Table | None:
    """Build Table 3: how much temporal relaxation is best?"""

    def position(series: Series) -> Position | None:
        row = RANDOM_INIT_ROW if series.is_random_init else series.facts["relaxation"] or shown(series.facts["method"])
        return row, (shown(series.facts["downstream_data"]), series.column.label)

    series = standard(series_of(runs))
    known = {*RELAXATIONS, *runs.pretrainings["relaxation"]}
    kinds = [{"relaxation": name} for name in sorted(known)]
    spec = TableSpec(
        "table3",
        "Table 3",
        "How much temporal relaxation is best?",
        "relaxation",
        LayoutRules(
            position,
            rows=False,
            apart=("scale", "method", "pretrain_data", *PROTOCOL[1:]),
            families=("pretrain_family", "family"),
        ),
        rows=[*RELAXATIONS, *sorted(known - {*RELAXATIONS})],
        best="column",
        over_random_init=True,
        remark=NO_CURVES,
    )
    return build_table(runs, [*series, *gaps_of(runs, series, kinds, apart=ALL_BUT_RELAXATION)], spec)


def table4(runs: StudyRuns) -> Table | None:
    """Build Table 4: sound classification, against other methods."""

    def heading(data: str, name: str) -> Heading:
        return shown(data), f"from {shown(name)}" if name else ""

    published: dict[Position, float] = {}
    for row in rows_of("table4"):
        for name in ("kinetics400", "audioset"):
            published[shown(row["method"]), heading(row["downstream"], name)] = float(row[name])

    def position(series: Series) -> Position | None:
        if series.column.modality != "a" or series.facts["protocol"] == "finetune":
            return None
        return _method(series), heading(series.facts["downstream_data"], series.facts["pretrain_data"])

    spec = TableSpec(
        "table4",
        "Table 4",
        "Sound classification by frozen features, against other ways of pretraining.",
        "method",
        LayoutRules(position, rows=False, families=()),
        [shown(method) for method in METHODS],
        [heading(data, name) for data in ("esc50", "dcase2013", "demo") for name in PRETRAINING_SETS],
        published,
        best="column",
    )
    return build_table(runs, _series(runs), spec)


def table5(runs: StudyRuns) -> Table | None:
    """Build Table 5: action recognition, against other methods."""
    published: dict[Position, float] = {}
    for row in rows_of("table5"):
        backbone = f"{row['backbone']}, {row['params_m']} M"
        label = f"{shown(row['method'])}, {shown(row['pretrain'])}, {backbone}, {row['frames']} frames"
        for name in ("ucf101", "hmdb51"):
            published[label, (shown(name), "top-1")] = float(row[name])

    def position(series: Series) -> Position | None:
        facts = series.facts
        if facts["protocol"] != "finetune":
            return None
        parts = [_method(series), shown(facts["pretrain_data"]), facts["backbone"], f"{facts['frames']} frames"]
        return ", ".join(filter(None, parts)), (shown(facts["downstream_data"]), "top-1")

    spec = TableSpec(
        "table5",
        "Table 5",
        "Action recognition by fine-tuning the video network, against other ways of pretraining.",
        "method, pretrained on, backbone, frames",
        LayoutRules(position, rows=False, apart=[name for name in PROTOCOL if name != "frames"], families=()),
        [label for label, _ in published],
        [("UCF101", "top-1"), ("HMDB51", "top-1")],
        published,
        best="column",
    )
    return build_table(runs, _series(runs), spec)


def frozen(runs: StudyRuns) -> Table | None:
    """Build the table of every method's modalities by frozen features."""

    def position(series: Series) -> Position | None:
        if series.facts["protocol"] in ("finetune", "retrieval"):
            return None
        name = shown(series.facts["pretrain_data"])
        row = f"{_method(series)}, {name}" if name else _method(series)
        return row, (shown(series.facts["downstream_data"]), series.column.label)

    series = _series(runs)
    if {one.column.modality for one in series if one.facts["protocol"] != "finetune"} <= {"a"}:
        return None  # Table 4 has all of it
    order = [f"{shown(method)}, {shown(name)}" for name in PRETRAINING_SETS for method in METHODS]
    columns = [("demo", label) for label in MODALITIES.values()]
    title, question = "Frozen features", "How does linear evaluation see each way of pretraining?"
    rules = LayoutRules(position, rows=False, families=())
    return build_table(
        runs,
        series,
        TableSpec("frozen", title, question, "method, pretrained on", rules, order, columns, best="column"),
    )


def retrieval(runs: StudyRuns) -> Table | None:
    """Build the retrieval table: are a clip's nearest neighbours of its class?"""

    def position(series: Series) -> Position | None:
        measure = "R@" + series.column.measure.removeprefix("recall_at_")
        group = f"{shown(series.facts['downstream_data'])} {MODALITIES[series.column.modality]}"
        return _method(series), (group, measure)

    series = [one for one in _series(runs) if one.facts["protocol"] == "retrieval"]
    ranks = sorted({int(one.column.measure.removeprefix("recall_at_")) for one in series})
    groups = [f"{shown(name)} {label}" for name in ("ucf101", "hmdb51", "demo") for label in MODALITIES.values()]
    columns = [(group, f"R@{rank}") for group in groups for rank in ranks]
    question = "Are a clip's nearest neighbours of its class?"
    rules = LayoutRules(position, rows=False)
    return build_table(
        runs, series, TableSpec("retrieval", "Retrieval", question, "pretraining", rules, columns=columns)
    )


def _method(series: Series) -> str:
    return RANDOM_INIT_ROW if series.is_random_init else shown(series.facts["method"])


def _series(runs: StudyRuns) -> list[Series]:
    """Return the series of the tables, including pretrainings without evaluations."""
    series = standard(series_of(runs))
    return [*series, *gaps_of(runs, series, unevaluated(runs, series), apart=SAME_DATA)]
