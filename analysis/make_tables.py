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

from analysis.options import add_store_options, bring_up_to_date
from analysis.studies import STUDIES, TABLES
from crisscross.files import write_text
from crisscross.record import mask_passwords
from crisscross.store_address import absolute
from crisscross.tracking import DEFAULT_EXPERIMENT, DEFAULT_URI, TrackingError, log_outputs

if TYPE_CHECKING:
    from analysis.page import Section
    from analysis.tables.base import Table

FORMATS = ("md", "csv", "tex", "html")


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
    page: list[Section] | None = None,
    keep: bool = True,
) -> int:
    """Print a study's tables, write them to files and keep these in MLflow; what cannot be done is told in one line.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: which study.
        fingerprint: which variant of it; None = the one launched last.
        tables: which of its tables; None = all.
        out: folder of the files, made when it is not there.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        page: what is printed is added to it; the caller makes one page of all.
        keep: whether the files are kept in MLflow.

    Returns:
        The exit code: 0 when there was a table to print and it is written, 1 when not. A store that cannot be written
        changes nothing of it.
    """
    from analysis.page import Section
    from analysis.runs import NoRunsError, read_study
    from analysis.tables import render

    try:
        runs = read_study(uri, experiment=experiment, study=study, fingerprint=fingerprint)
    except (NoRunsError, TrackingError) as error:
        is_away = uri.startswith("http") and isinstance(error, TrackingError)
        hint = "is the server up?" if is_away else f"`{STUDIES[study].command}` runs the study"
        print(f"no table: {error}; {hint}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"no table: {error}", file=sys.stderr)
        return 1
    if runs.evaluations.empty:
        print(
            f"no table: the study {study} has {len(runs.pretrainings)} pretrainings but no evaluation yet; "
            f"`{STUDIES[study].command}` runs what is missing",
            file=sys.stderr,
        )
        return 1
    made = [STUDIES[study].build(runs, name) for name in tables or STUDIES[study].tables]
    made = [table for table in made if table is not None]
    if not made:
        print(f"no table: nothing that the study {study} has evaluated belongs into one", file=sys.stderr)
        return 1
    for table in made:
        print(render.terminal(table))
    if runs.others:
        another = command_line(uri, experiment=experiment, study=study, fingerprint=runs.others[0])
        print(f"Variant {runs.fingerprint} of the study; this store also has {', '.join(runs.others)}: {another}")
    files = _write(made, runs.fingerprint, Path(out), [name for name in formats if name != "html"])
    is_kept = files is not None and keep
    if files and keep:
        again = command_line(uri, experiment=experiment, study=study, fingerprint=runs.fingerprint)
        is_kept = _keep(
            {f"tables/{name}": path for name, path in files.items()},
            kind="tables",
            of=f"{study}.{runs.fingerprint}",
            description=f"Tables of the study {study}, variant {runs.fingerprint}.\n\n    {again}",
            uri=uri,
            experiment=experiment,
        )
    if page is not None:
        page.append(Section(runs, made, is_kept))
    return 1 if files is None else 0


def _write(tables: Sequence[Table], fingerprint: str, folder: Path, formats: Sequence[str]) -> dict[str, Path] | None:
    """Write tables, a file each and format; a variant never overwrites another one's. None where that fails."""
    from analysis.tables import render

    texts = {"md": render.markdown, "csv": render.comma_separated, "tex": render.latex}
    files: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table in tables:
            for extension in formats:
                name = f"{table.name}-{fingerprint}.{extension}"
                files[name] = folder / name
                write_text(files[name], texts[extension](table))
    except OSError as error:
        print(f"the table is not written: {folder}: {error.strerror}: give a folder you can write", file=sys.stderr)
        return None
    if files:
        print(f"Written: {', '.join(map(str, files.values()))}")
    return files


def _keep(files: Mapping[str, Path], *, kind: str, of: str, description: str, uri: str, experiment: str) -> bool:
    """Keep files as artifacts in MLflow; say in one line where that cannot be done: they are there all the same."""
    try:
        log_outputs(files, kind=kind, of=of, description=description, uri=uri, experiment=experiment)
    except (TrackingError, OSError, ValueError) as error:
        reason = mask_passwords(" ".join(str(error).split()))
        print(f"what is written is not in MLflow ({kind} of {of}): {reason}", file=sys.stderr)
        return False
    return True


def print_all(
    uri: str,
    *,
    experiment: str,
    studies: Sequence[str],
    fingerprint: str | None = None,
    table: str | None = None,
    out: str | Path = "tables",
    formats: Sequence[str] = FORMATS,
    figures: str | Path = "figures",
    ui: str | None = None,
    keep: bool = True,
) -> int:
    """Print the tables of several studies, and make one page of all of them with the figures that there are.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        studies: whose tables.
        fingerprint: which variant; None = those launched last.
        table: one of the tables; None = all.
        out: folder of the files.
        formats: some of ``md``, ``csv``, ``tex``, ``html``.
        figures: folder of the figures.
        ui: address of MLflow's UI, for the page's links.
        keep: whether the files are kept in MLflow.

    Returns:
        The exit code: the worst of the studies'.
    """
    from analysis.page import write_page

    page: list[Section] = []
    codes = []
    for study in studies:
        codes.append(
            print_tables(
                uri,
                experiment=experiment,
                study=study,
                fingerprint=fingerprint,
                tables=[table] if table else None,
                out=out,
                formats=formats,
                page=page,
                keep=keep
                and all(section.is_kept for section in page),  # a store that cannot be written is told of once
            )
        )
    if "html" in formats and page and Path(out).is_dir():
        path = Path(out) / "report.html"
        place = {"uri": uri, "experiment": experiment}
        try:
            write_page(path, page, figures=Path(figures), ui=ui, **place)
        except OSError as error:
            print(f"the page is not written: {path}: {error.strerror}: give a folder you can write", file=sys.stderr)
            return 1
        print(f"Written: {path}")
        names = [f"{section.runs.study}.{section.runs.fingerprint}" for section in page]
        if keep and all(section.is_kept for section in page):
            _keep(
                {f"report/{path.name}": path},
                kind="report",
                of=names[0] if len(names) == 1 else "all",
                description=f"The tables and figures of {', '.join(names)} on one page.",
                **place,
            )
    return max(codes, default=1)


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(FORMATS)}")
    return names


def _studies_in(uri: str, experiment: str, *, fingerprint: str | None) -> list[str]:
    """Return the studies that a store has runs, or that variant, of; that of Table 3 where it has none and says so."""
    from analysis.runs import variants_of
    from crisscross.tracking import experiment_tags

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
    parser.add_argument("--read-only", action="store_true", help="do not keep the files in MLflow as well")
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
    return print_all(
        **place,
        studies=[study] if study else _studies_in(**place, fingerprint=options.fingerprint),
        fingerprint=options.fingerprint,
        table=options.table,
        out=options.out,
        formats=options.format,
        figures=options.figures,
        ui=options.ui,
        keep=not options.read_only,
    )


if __name__ == "__main__":
    sys.exit(main())
