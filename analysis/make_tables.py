"""Print the tables from the runs in MLflow, write them to files, and keep these in MLflow.

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
from typing import TYPE_CHECKING

from analysis.cli import Place, add_store_options, bring_up_to_date, keeper_of
from analysis.studies import STUDIES, TABLES
from crisscross.tracking.artifacts import Keeper
from crisscross.tracking.client import DEFAULT_EXPERIMENT, DEFAULT_URI, TrackingError, absolute
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:
    from analysis.study_tables import StudyTables

FORMATS = ("md", "csv", "tex", "html")
PAGE = "report.html"
"""Of all studies; that of one study has its name in the file's."""


def command_line(uri: str, *, experiment: str, study: str | None = None, fingerprint: str | None = None) -> str:
    """Return the command that prints the tables of a store; a password in its address is masked."""
    options = ["--study", study] if study else []
    options += ["--fingerprint", fingerprint] if fingerprint else []
    options += [] if is_default(uri) else ["--uri", mask_passwords(uri)]
    options += ["--experiment", experiment] if experiment != DEFAULT_EXPERIMENT else []
    return shlex.join(["uv", "run", "analysis/make_tables.py", *options])


def is_default(uri: str) -> bool:
    """Whether this is the store that commands look into when they are told nothing, however it is written."""
    return uri.startswith("sqlite") and absolute(uri) == absolute(DEFAULT_URI)


def print_tables(
    uri: str,
    *,
    experiment: str = DEFAULT_EXPERIMENT,
    study: str = "relaxation",
    fingerprint: str | None = None,
    tables: Sequence[str] | None = None,
    out: str | Path = "tables",
    formats: Sequence[str] = FORMATS,
    page: list[StudyTables] | None = None,
    keeper: Keeper | None = None,
) -> int:
    """Print a study's tables, write them to files and keep these in MLflow; what cannot be done is told in one line.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: this, ``fingerprint`` and ``tables`` as for ``analysis.study_tables.section_of``.
        fingerprint: see there.
        tables: see there.
        out: folder of the files, made when it is not there.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        page: what is printed is added to it; the caller makes one page of all.
        keeper: keeps the files; None = one for this store.

    Returns:
        The exit code: 0 when there was a table to print and it is written, 1 when not. A store that cannot be written
        changes nothing of it.
    """
    from analysis.runs import NoRunsError
    from analysis.study_tables import section_of, write_tables
    from analysis.tables import render

    try:
        section = section_of(uri, experiment=experiment, study=study, fingerprint=fingerprint, tables=tables)
    except NoRunsError as error:
        print(f"no table: {error}", file=sys.stderr)
        return 1
    runs = section.runs
    for table in section.tables:
        print(render.terminal(table))
    if runs.others:
        another = command_line(uri, experiment=experiment, study=study, fingerprint=runs.others[0])
        print(f"Variant {runs.fingerprint} of the study; this store also has {', '.join(runs.others)}: {another}")
    if page is not None:
        page.append(section)
    try:
        files = write_tables(section, Path(out), [name for name in formats if name != "html"])
    except OSError as error:
        print(f"the table is not written: {out}: {error.strerror}: give a folder you can write", file=sys.stderr)
        return 1
    if files:
        print(f"Written: {', '.join(map(str, files.values()))}")
    again = command_line(uri, experiment=experiment, study=study, fingerprint=runs.fingerprint)
    (keeper or Keeper(uri, experiment)).keep(
        {f"tables/{name}": path for name, path in files.items()},
        kind="tables",
        of=section.name,
        description=f"Tables of the study {study}, variant {runs.fingerprint}.\n\n    {again}",
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
    keeper: Keeper | None = None,
) -> int:
    """Print the tables of several studies, and make one page of all of them with the figures that there are.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        studies: whose tables, and of which variant each; None = the one launched last.
        table: one of the tables; None = all.
        out: folder of the files.
        name: of the page's file.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        figures: folder of the figures.
        ui: address of MLflow's UI, for the page's links.
        keeper: keeps the files; None = one for this store.

    Returns:
        The exit code: the worst of the studies'.
    """
    from analysis.html_report import make_page

    place: Place = {"uri": uri, "experiment": experiment}
    keeper = keeper or Keeper(**place)
    page: list[StudyTables] = []
    codes = [
        print_tables(
            **place,
            study=study,
            fingerprint=fingerprint,
            tables=[table] if table else None,
            out=out,
            formats=formats,
            page=page,
            keeper=keeper,
        )
        for study, fingerprint in studies.items()
    ]
    if "html" in formats and page and Path(out).is_dir():
        path = Path(out) / name
        codes.append(0 if make_page(page, path, figures=Path(figures), ui=ui, keeper=keeper, **place) else 1)
    return max(codes, default=1)


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(FORMATS)}")
    return names


def studies_in(uri: str, experiment: str, *, fingerprint: str | None = None) -> list[str]:
    """Return the studies that a store has runs, or that variant, of; that of Table 3 where it has none and says so."""
    from analysis.runs import variants_of
    from crisscross.tracking.query import experiment_tags

    with contextlib.suppress(TrackingError, ValueError):
        tags = experiment_tags(uri=uri, experiment=experiment)
        variants = {study: variants_of(study, tags) for study in STUDIES}
        found = [study for study, known in variants.items() if known and fingerprint in (None, *known)]
        return found or ["relaxation"]
    return ["relaxation"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the tables from the runs in MLflow and write them to files.")
    parser.add_argument("--table", choices=sorted(TABLES), help="one of them (default: all that there are runs for)")
    add_store_options(
        parser,
        studies=STUDIES,
        what="tables",
        runs_root="run directories that MLflow may lag behind: it is brought up to date first",
    )
    parser.add_argument(
        "--figures", default="figures", help="folder of the figures for the page (default: %(default)s)"
    )
    parser.add_argument("--ui", help="address of MLflow's UI for the page's links (default: --uri, or 127.0.0.1:5000)")
    parser.add_argument(
        "--format", default=",".join(FORMATS), type=_formats, help="files to write (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and print the tables.

    Args:
        argv: the arguments without the program's name; None = those of this process.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.table and options.study and options.table not in STUDIES[options.study].tables:
        parser.error(f"--table {options.table} belongs to the study {TABLES[options.table]}")
    place = bring_up_to_date(options)
    study = options.study or (TABLES[options.table] if options.table else None)
    studies = [study] if study else studies_in(**place, fingerprint=options.fingerprint)
    return print_all(
        **place,
        studies=dict.fromkeys(studies, options.fingerprint),
        table=options.table,
        out=options.out,
        name=f"report-{study}.html" if study else PAGE,
        formats=options.format,
        figures=options.figures,
        ui=options.ui,
        keeper=keeper_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
