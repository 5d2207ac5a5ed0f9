"""Print all tables, draw all figures, and write one HTML report.

uv run analysis/make_report.py
uv run analysis/make_report.py --uri http://127.0.0.1:5000 --out report
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from analysis.cli import StoreLocation, add_store_options, artifacts_of, sync_store
from analysis.html_report import make_html_report
from analysis.make_figures import FIGURES, draw_figures
from analysis.make_tables import PAGE, print_tables, studies_in
from analysis.runs import NoRunsError
from analysis.study_tables import StudyTables, make_study_tables
from crisscross.tracking.artifacts import ArtifactLogger
from crisscross.utils.terminal import print_what_can_be_printed


def make_report(
    uri: str,
    *,
    experiment: str,
    studies: Mapping[str, str | None],
    runs_root: str | Path,
    out: str | Path = ".",
    ui: str | None = None,
    artifacts: ArtifactLogger | None = None,
) -> int:
    """Print tables of some studies, draw their figures, write one report.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        studies: the hash of the variant by study; None = the one launched last.
        runs_root: folder of the run directories, for the figures.
        out: folder of ``figures/`` and ``tables/``; the report is ``tables/report.html``.
        ui: address of MLflow's UI, for the links of the report.
        artifacts: logs the files; None = a logger for this store.

    Returns:
        The exit code: 0 if every table and figure that has runs was made, else 1. Each error is one line on stderr.
    """
    location: StoreLocation = {"uri": uri, "experiment": experiment}
    artifacts = artifacts or ArtifactLogger(**location)
    tables = Path(out) / "tables"
    collected: list[StudyTables] = []
    codes = [
        print_tables(**location, study=study, study_hash=variant, out=tables, collected=collected, artifacts=artifacts)
        for study, variant in studies.items()
    ]
    codes.append(
        _illustrate(
            collected, runs_root=runs_root, out=Path(out), redraw=studies, ui=ui, artifacts=artifacts, **location
        )
    )
    return max(codes)


def add_to_report(
    uri: str, *, experiment: str, study: str, studies: Mapping[str, str], runs_root: str | Path, out: str | Path
) -> int:
    """Update figures and report after one of several studies is done.

    Args:
        uri: see ``make_report``.
        experiment: see ``make_report``.
        study: the study of ``studies`` that is done: its figures are drawn again. Other studies get missing figures.
        studies: see ``make_report``.
        runs_root: see ``make_report``.
        out: see ``make_report``.

    Returns:
        The exit code: 0 if figures and report were written, else 1.
    """
    location: StoreLocation = {"uri": uri, "experiment": experiment}
    collected: list[StudyTables] = []
    for name, variant in studies.items():
        with contextlib.suppress(NoRunsError):  # its own last job reports it
            collected.append(make_study_tables(**location, study=name, study_hash=variant))
    return _illustrate(
        collected, runs_root=runs_root, out=Path(out), redraw={study}, artifacts=ArtifactLogger(**location), **location
    )


def _illustrate(
    collected: Sequence[StudyTables],
    *,
    uri: str,
    experiment: str,
    runs_root: str | Path,
    out: Path,
    redraw: Collection[str],
    artifacts: ArtifactLogger,
    ui: str | None = None,
) -> int:
    """Draw figures of studies in ``redraw`` and missing ones; write the report."""
    location: StoreLocation = {"uri": uri, "experiment": experiment}
    figures = out / "figures"
    codes = []
    for study_tables in collected:
        study, variant = study_tables.runs.study, study_tables.runs.study_hash
        names = [name for name, entry in FIGURES.items() if entry.study == study]
        if study in redraw or len(study_tables.figures(figures)) < len(names):
            codes.append(
                draw_figures(
                    names,
                    **location,
                    study_hash=variant,
                    runs_root=runs_root,
                    out=figures,
                    artifacts=artifacts,
                    strict=False,
                )
            )
    if collected:
        is_made = make_html_report(
            collected, out / "tables" / PAGE, figures=figures, ui=ui, artifacts=artifacts, **location
        )
        codes.append(0 if is_made else 1)
    return max(codes, default=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments without the program's name; None = ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    print_what_can_be_printed()
    parser = argparse.ArgumentParser(description="Draw all figures, print all tables, write one HTML report.")
    add_store_options(parser, runs_root="folder of the run directories, which are synced to MLflow first")
    parser.add_argument("--out", default=".", help="folder of figures/ and tables/ (default: the current one)")
    parser.add_argument("--ui", help="address of MLflow's UI for links (default: --uri, or 127.0.0.1:5000)")
    options = parser.parse_args(argv)
    location = sync_store(options)
    studies = dict.fromkeys(studies_in(**location))
    return make_report(
        **location,
        studies=studies,
        runs_root=options.runs_root,
        out=options.out,
        ui=options.ui,
        artifacts=artifacts_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
