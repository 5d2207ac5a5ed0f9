"""Draw all figures, print all tables, and put them on one page: of every study that the store has runs of.

uv run analysis/make_report.py
uv run analysis/make_report.py --uri http://127.0.0.1:5000 --out report
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.keeper import Keeper
from analysis.make_figures import FIGURES, draw_figures
from analysis.make_tables import print_all, studies_in
from analysis.options import add_place_options, bring_up_to_date


def make_report(
    uri: str,
    *,
    experiment: str,
    studies: Mapping[str, str | None],
    runs_root: str | Path,
    out: str | Path = ".",
    ui: str | None = None,
) -> int:
    """Draw the figures of some studies, print their tables, make one page of both.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        studies: which, and which variant of each; None = the one launched last.
        runs_root: folder of the run directories, for the figures.
        out: folder in which ``figures`` and ``tables`` are made; the page is ``tables/report.html``.
        ui: address of MLflow's UI, for the page's links.

    Returns:
        The exit code: 0 when everything was made, 1 when not; what was not is told in one line each.
    """
    place = {"uri": uri, "experiment": experiment}
    figures = Path(out) / "figures"
    codes = [_draw(study, variant, **place, runs_root=runs_root, out=figures) for study, variant in studies.items()]
    codes.append(print_all(**place, studies=studies, out=Path(out) / "tables", figures=figures, ui=ui))
    return max(codes)


def add_to_report(
    uri: str, *, experiment: str, study: str, studies: Mapping[str, str], runs_root: str | Path, out: str | Path
) -> int:
    """Draw the figures of one study and make the page anew, of all studies that have something to show by now.

    Args:
        uri: see ``make_report``.
        experiment: see ``make_report``.
        study: which of ``studies`` has just been finished.
        studies: see ``make_report``.
        runs_root: see ``make_report``.
        out: see ``make_report``.

    Returns:
        The exit code: 0 when figures and page are there.
    """
    from analysis.page import make_page
    from analysis.sections import NoTableError, section_of

    place = {"uri": uri, "experiment": experiment}
    figures, sections = Path(out) / "figures", []
    code = _draw(study, studies[study], **place, runs_root=runs_root, out=figures)
    for name, variant in studies.items():
        with contextlib.suppress(NoTableError):  # it says so itself, in its own last job
            sections.append(section_of(**place, study=name, fingerprint=variant))
    keeper = Keeper(uri, experiment)
    is_written = make_page(sections, Path(out) / "tables", figures=figures, **place, keeper=keeper)
    return code if is_written else 1


def _draw(study: str, fingerprint: str | None, *, out: Path, **place: str | Path) -> int:
    names = [name for name, known in FIGURES.items() if known.study == study]
    return draw_figures(names, **place, fingerprint=fingerprint, out=out)


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
    return make_report(**place, studies=studies, runs_root=options.runs_root, out=options.out, ui=options.ui)


if __name__ == "__main__":
    sys.exit(main())
