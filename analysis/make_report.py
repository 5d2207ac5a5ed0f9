"""Print all tables, draw all figures, and put them on one page: of every study that the store has runs of.

uv run analysis/make_report.py
uv run analysis/make_report.py --uri http://127.0.0.1:5000 --out report
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli import Place, add_place_options, bring_up_to_date, keeper_of
from analysis.make_figures import FIGURES, draw_figures
from analysis.make_tables import PAGE, print_tables, studies_in
from crisscross.tracking.artifacts import Keeper

if TYPE_CHECKING:
    from analysis.study_tables import StudyTables


def make_report(
    uri: str,
    *,
    experiment: str,
    studies: Mapping[str, str | None],
    runs_root: str | Path,
    out: str | Path = ".",
    ui: str | None = None,
    keeper: Keeper | None = None,
) -> int:
    """Print the tables of some studies, draw their figures, make one page of both.

    Args:
        uri: this and all else but the next two as for ``analysis.make_tables.print_all``.
        experiment: see there.
        studies: see there.
        runs_root: folder of the run directories, for the figures.
        out: folder in which ``figures`` and ``tables`` are made; the page is ``tables/report.html``.
        ui: see there.
        keeper: see there.

    Returns:
        The exit code: 0 when everything was made that the runs have something for, 1 when not; what was not is told in
        one line each.
    """
    place: Place = {"uri": uri, "experiment": experiment}
    keeper = keeper or Keeper(**place)
    tables = Path(out) / "tables"
    page: list[StudyTables] = []
    codes = [
        print_tables(**place, study=study, fingerprint=variant, out=tables, page=page, keeper=keeper)
        for study, variant in studies.items()
    ]
    codes.append(_illustrate(page, runs_root=runs_root, out=Path(out), redraw=studies, ui=ui, keeper=keeper, **place))
    return max(codes)


def add_to_report(
    uri: str, *, experiment: str, study: str, studies: Mapping[str, str], runs_root: str | Path, out: str | Path
) -> int:
    """Make figures and page anew when one of several studies is done; those that have nothing to show are left out.

    Args:
        uri: see ``make_report``.
        experiment: see ``make_report``.
        study: which of ``studies`` has just been finished: its figures are drawn, of the others those that are missing.
        studies: see ``make_report``.
        runs_root: see ``make_report``.
        out: see ``make_report``.

    Returns:
        The exit code: 0 when figures and page are there.
    """
    from analysis.runs import NoRunsError
    from analysis.study_tables import section_of

    place: Place = {"uri": uri, "experiment": experiment}
    page: list[StudyTables] = []
    for name, variant in studies.items():
        with contextlib.suppress(NoRunsError):  # it says so itself, in its own last job
            page.append(section_of(**place, study=name, fingerprint=variant))
    return _illustrate(page, runs_root=runs_root, out=Path(out), redraw={study}, keeper=Keeper(**place), **place)


def _illustrate(
    page: Sequence[StudyTables],
    *,
    uri: str,
    experiment: str,
    runs_root: str | Path,
    out: Path,
    redraw: Collection[str],
    keeper: Keeper,
    ui: str | None = None,
) -> int:
    """Draw the figures of a page, those of the studies in ``redraw`` and those that are missing, and make it."""
    from analysis.html_report import make_page

    place: Place = {"uri": uri, "experiment": experiment}
    figures = out / "figures"
    codes = []
    for section in page:
        study, variant = section.runs.study, section.runs.fingerprint
        names = [name for name, known in FIGURES.items() if known.study == study]
        if study in redraw or len(section.figures(figures)) < len(names):
            codes.append(
                draw_figures(
                    names,
                    **place,
                    fingerprint=variant,
                    runs_root=runs_root,
                    out=figures,
                    keeper=keeper,
                    strict=False,
                )
            )
    if page:
        is_made = make_page(page, out / "tables" / PAGE, figures=figures, ui=ui, keeper=keeper, **place)
        codes.append(0 if is_made else 1)
    return max(codes, default=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and make the report.

    Args:
        argv: the arguments without the program's name; None = those of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Draw all figures, print all tables, put them on one page.")
    add_place_options(parser, runs_root="run directories; MLflow is brought up to date with them first")
    parser.add_argument("--out", default=".", help="folder in which figures/ and tables/ are made (default: here)")
    parser.add_argument("--ui", help="address of MLflow's UI for the page's links (default: --uri, or 127.0.0.1:5000)")
    options = parser.parse_args(argv)
    place = bring_up_to_date(options)
    studies = dict.fromkeys(studies_in(**place))
    return make_report(
        **place,
        studies=studies,
        runs_root=options.runs_root,
        out=options.out,
        ui=options.ui,
        keeper=keeper_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
