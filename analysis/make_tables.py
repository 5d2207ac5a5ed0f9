"""Print the tables from the runs in MLflow; write and log them.

uv run analysis/make_tables.py
uv run analysis/make_tables.py --table 4 --format md,tex
uv run analysis/make_tables.py --study relaxation --uri http://127.0.0.1:5000 --fingerprint 1a2b3c4d --out tables
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.cli import StoreLocation, add_study_options, artifacts_of, sync_store
from analysis.html_report import make_html_report
from analysis.runs import NoRunsError, variants_of
from analysis.studies import STUDIES, TABLES
from analysis.study_tables import StudyTables, make_study_tables, write_tables
from analysis.tables import render
from crisscross.tracking.address import DEFAULT_EXPERIMENT, DEFAULT_URI, TrackingError, absolute
from crisscross.tracking.artifacts import ArtifactLogger
from crisscross.tracking.query import experiment_tags
from crisscross.utils.redact import mask_passwords
from crisscross.utils.terminal import print_what_can_be_printed

FORMATS = ("md", "csv", "tex", "html")
PAGE = "report.html"
"""File name of the report of all studies; the report of one study is ``report-STUDY.html``."""


def command_line(uri: str, *, experiment: str, study: str | None = None, study_hash: str | None = None) -> str:
    """Return the command that prints a store's tables, with masked password."""
    options = ["--study", study] if study else []
    options += ["--fingerprint", study_hash] if study_hash else []
    options += [] if is_default(uri) else ["--uri", mask_passwords(uri)]
    options += ["--experiment", experiment] if experiment != DEFAULT_EXPERIMENT else []
    return shlex.join(["uv", "run", "analysis/make_tables.py", *options])


def is_default(uri: str) -> bool:
    """Whether the address names the default store, relative or absolute."""
    return uri.startswith("sqlite") and absolute(uri) == absolute(DEFAULT_URI)


def print_tables(
    uri: str,
    *,
    experiment: str = DEFAULT_EXPERIMENT,
    study: str = "relaxation",
    study_hash: str | None = None,
    tables: Sequence[str] | None = None,
    out: str | Path = "tables",
    formats: Sequence[str] = FORMATS,
    collected: list[StudyTables] | None = None,
    artifacts: ArtifactLogger | None = None,
) -> int:
    """Print, write and log a study's tables; print errors as one line.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: see ``analysis.study_tables.make_study_tables``.
        study_hash: see ``make_study_tables``.
        tables: see ``make_study_tables``.
        out: folder of the files, created if missing.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        collected: the function appends the tables to this list, for a report of several studies.
        artifacts: logs the files; None = a logger for this store.

    Returns:
        The exit code: 0 if tables were printed and written, else 1. A read-only store does not change it.
    """
    try:
        study_tables = make_study_tables(uri, experiment=experiment, study=study, study_hash=study_hash, tables=tables)
    except NoRunsError as error:
        print(f"no table: {error}", file=sys.stderr)
        return 1
    runs = study_tables.runs
    for table in study_tables.tables:
        print(render.terminal(table))
    if runs.others:
        another = command_line(uri, experiment=experiment, study=study, study_hash=runs.others[0])
        print(f"Variant {runs.study_hash} of the study; this store also has {', '.join(runs.others)}: {another}")
    if collected is not None:
        collected.append(study_tables)
    try:
        files = write_tables(study_tables, Path(out), [name for name in formats if name != "html"])
    except OSError as error:
        print(f"the table is not written: {out}: {error.strerror}: give a folder you can write", file=sys.stderr)
        return 1
    if files:
        print(f"Written: {', '.join(map(str, files.values()))}")
    again = command_line(uri, experiment=experiment, study=study, study_hash=runs.study_hash)
    (artifacts or ArtifactLogger(uri, experiment)).log(
        {f"tables/{name}": path for name, path in files.items()},
        kind="tables",
        of=study_tables.name,
        description=f"Tables of the study {study}, variant {runs.study_hash}.\n\n    {again}",
    )
    return 0


def print_all(
    uri: str,
    *,
    experiment: str,
    studies: Mapping[str, str | None],
    table: str | None = None,
    out: str | Path = "tables",
    name: str = PAGE,
    formats: Sequence[str] = FORMATS,
    figures: str | Path = "figures",
    ui: str | None = None,
    artifacts: ArtifactLogger | None = None,
) -> int:
    """Print the tables of several studies, and write one report.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        studies: the hash of the variant by study; None = the one launched last.
        table: one of the tables; None = all.
        out: folder of the files.
        name: file name of the report.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        figures: folder of the figures.
        ui: address of MLflow's UI, for the links of the report.
        artifacts: logs the files; None = a logger for this store.

    Returns:
        The highest exit code of the studies.
    """
    location: StoreLocation = {"uri": uri, "experiment": experiment}
    artifacts = artifacts or ArtifactLogger(**location)
    collected: list[StudyTables] = []
    codes = [
        print_tables(
            **location,
            study=study,
            study_hash=study_hash,
            tables=[table] if table else None,
            out=out,
            formats=formats,
            collected=collected,
            artifacts=artifacts,
        )
        for study, study_hash in studies.items()
    ]
    if "html" in formats and collected and Path(out).is_dir():
        path = Path(out) / name
        codes.append(
            0 if make_html_report(collected, path, figures=Path(figures), ui=ui, artifacts=artifacts, **location) else 1
        )
    return max(codes, default=1)


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(FORMATS)}")
    return names


def studies_in(uri: str, experiment: str, *, study_hash: str | None = None) -> list[str]:
    """Return the studies with runs in a store.

    If there are none, or the store cannot be read, the result is ``relaxation``, whose reading reports the error.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study_hash: only studies with this variant; None = any.
    """
    with contextlib.suppress(TrackingError, ValueError):
        tags = experiment_tags(uri=uri, experiment=experiment)
        variants = {study: variants_of(study, tags) for study in STUDIES}
        found = [study for study, known in variants.items() if known and study_hash in (None, *known)]
        return found or ["relaxation"]
    return ["relaxation"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the tables from the runs in MLflow and write them to files.")
    parser.add_argument("--table", choices=sorted(TABLES), help="one of them (default: all that there are runs for)")
    add_study_options(
        parser,
        studies=STUDIES,
        what="tables",
        runs_root="folder of the run directories, which are synced to MLflow first",
    )
    parser.add_argument(
        "--figures", default="figures", help="folder of the figures for the report (default: %(default)s)"
    )
    parser.add_argument("--ui", help="address of MLflow's UI for links (default: --uri, or 127.0.0.1:5000)")
    parser.add_argument(
        "--format", default=",".join(FORMATS), type=_formats, help="files to write (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments without the program's name; None = ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    print_what_can_be_printed()
    parser = _parser()
    options = parser.parse_args(argv)
    if options.table and options.study and options.table not in STUDIES[options.study].tables:
        parser.error(f"--table {options.table} belongs to the study {TABLES[options.table]}")
    location = sync_store(options)
    study = options.study or (TABLES[options.table] if options.table else None)
    studies = [study] if study else studies_in(**location, study_hash=options.study_hash)
    return print_all(
        **location,
        studies=dict.fromkeys(studies, options.study_hash),
        table=options.table,
        out=options.out,
        name=f"report-{study}.html" if study else PAGE,
        formats=options.format,
        figures=options.figures,
        ui=options.ui,
        artifacts=artifacts_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
