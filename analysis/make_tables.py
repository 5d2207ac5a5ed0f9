"""Print the tables from the runs in MLflow and write them to files.

uv run analysis/make_tables.py
uv run analysis/make_tables.py --uri http://127.0.0.1:5000 --fingerprint 1a2b3c4d --out tables --format md,csv
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from crisscross.catch_up import catch_up, runs_behind
from crisscross.files import write_text
from crisscross.record import mask_passwords
from crisscross.store_address import absolute
from crisscross.tracking import DEFAULT_EXPERIMENT, DEFAULT_URI, TrackingError

FORMATS = ("md", "csv", "tex")
COMMANDS = {"relaxation": "uv run launch/sweep_relaxation.py"}
"""The studies that have a table, and what runs them."""


def command_line(uri: str, *, experiment: str, fingerprint: str | None = None) -> str:
    """Return the command that prints the tables of a store; a password in its address is masked."""
    options = ["--fingerprint", fingerprint] if fingerprint else []
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
    out: str | Path = "tables",
    formats: Sequence[str] = FORMATS,
) -> int:
    """Print a study's table and write it to files; where that cannot be done, say so in one line.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: which study.
        fingerprint: which variant of it; None = the one launched last.
        out: folder of the files, made when it is not there.
        formats: some of ``md``, ``csv``, ``tex``.

    Returns:
        The exit code: 0 when a table was printed and written, 1 when not.
    """
    from analysis.runs import NoRunsError, read_study
    from analysis.tables import render, table3

    try:
        runs = read_study(uri, experiment=experiment, study=study, fingerprint=fingerprint)
    except (NoRunsError, TrackingError) as error:
        is_away = uri.startswith("http") and isinstance(error, TrackingError)
        hint = "is the server up?" if is_away else f"`{COMMANDS[study]}` runs the study"
        print(f"no table: {error}; {hint}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"no table: {error}", file=sys.stderr)
        return 1
    if runs.evaluations.empty:
        print(
            f"no table: the study {study} has {len(runs.pretrainings)} pretrainings but no evaluation yet; "
            f"`{COMMANDS[study]}` runs what is missing",
            file=sys.stderr,
        )
        return 1
    table = table3.build(runs)
    texts = {"md": render.markdown, "csv": render.comma_separated, "tex": render.latex}
    print(render.markdown(table))
    if runs.others:
        print(
            f"Variant {runs.fingerprint} of the study; this store also has {', '.join(runs.others)}: "
            f"{command_line(uri, experiment=experiment, fingerprint=runs.others[0])}"
        )
    folder, stem = Path(out), f"{table.name}-{runs.fingerprint}"  # a variant never overwrites another one's table
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in formats:
            write_text(folder / f"{stem}.{name}", texts[name](table))
    except OSError as error:
        print(f"the table is not written: {folder}: {error.strerror}: give a folder you can write", file=sys.stderr)
        return 1
    print(f"Written: {', '.join(str(folder / f'{stem}.{name}') for name in formats)}")
    return 0


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(FORMATS)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and print the tables.

    Args:
        argv: the arguments without the program's name; None = those of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Print the tables from the runs in MLflow and write them to files.")
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow's tracking URI (default: %(default)s)")
    parser.add_argument("--experiment", default=DEFAULT_EXPERIMENT, help="MLflow experiment (default: %(default)s)")
    parser.add_argument("--study", default="relaxation", choices=sorted(COMMANDS), help="default: %(default)s")
    parser.add_argument("--fingerprint", help="variant of the study, 8 digits (default: the one launched last)")
    parser.add_argument(
        "--runs-root",
        default="runs",
        type=Path,
        help="run directories that MLflow may lag behind: it is brought up to date first (default: %(default)s)",
    )
    parser.add_argument("--out", default="tables", help="folder of the files (default: %(default)s)")
    parser.add_argument(
        "--format", default=",".join(FORMATS), type=_formats, help="files to write (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    place = {"uri": options.uri, "experiment": options.experiment}
    with contextlib.suppress(ValueError):  # an address that is none: told below
        behind = runs_behind(options.runs_root, **place)
        if behind:
            print(catch_up(behind, **place), file=sys.stderr)
    return print_tables(
        options.uri,
        experiment=options.experiment,
        study=options.study,
        fingerprint=options.fingerprint,
        out=options.out,
        formats=options.format,
    )


if __name__ == "__main__":
    sys.exit(main())
