"""Draw the figures from the runs in MLflow: a PNG and a PDF each, and a text beside them that says which runs.

uv run analysis/make_figures.py
uv run analysis/make_figures.py --figure 3-left --out figures
uv run analysis/make_figures.py --study relaxation --uri http://127.0.0.1:5000 --fingerprint 1a2b3c4d
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli import add_store_options, bring_up_to_date, keeper_of
from analysis.figures.base import Drawing, NotThereError, Wanted, caption_text
from analysis.studies import STUDIES
from crisscross.tracking.artifacts import Keeper
from crisscross.tracking.client import DEFAULT_EXPERIMENT
from crisscross.utils.files import write_bytes, write_text

if TYPE_CHECKING:
    from analysis.runs import StudyRuns


@dataclass(frozen=True)
class Known:
    """A figure that can be drawn.

    Attributes:
        study: of whose runs.
        module: of ``analysis.figures``, which has the function ``build``.
    """

    study: str
    module: str

    def build(self, runs: StudyRuns, wanted: Wanted) -> Drawing:
        """Draw it."""
        return importlib.import_module(f"analysis.figures.{self.module}").build(runs, wanted)


FIGURES = {
    "3-left": Known("async", "figure3_left"),
    "3-right": Known("async", "figure3_right"),
    "4": Known("async", "figure4"),
    "relaxation": Known("relaxation", "relaxation"),
    "5": Known("retrieval", "figure5"),
}
"""By the name that ``--figure`` knows, so that each study is read once."""
BOTH = {"3": ("3-left", "3-right")}
DRAWN, LEFT_OUT, FAILED = range(3)
"""What became of a figure. It is left out where the runs that there are have nothing for it."""


class _Pen:
    """Draws figures of one store, one after the other; what goes wrong with one is one line on stderr."""

    def __init__(self, uri: str, *, experiment: str, fingerprint: str | None, out: Path, wanted: Wanted) -> None:
        self._uri, self._experiment, self._fingerprint = uri, experiment, fingerprint
        self._out, self._wanted = out, wanted
        self._studies: dict[str, StudyRuns] = {}
        self.drawn: dict[str, dict[str, Path]] = {}

    def draw(self, name: str) -> int:
        """Draw a figure and write its files, or say in one line why not; return what became of it."""
        from analysis.runs import NoRunsError
        from crisscross.data.media.streams import DecodeError

        study = FIGURES[name].study
        try:
            runs = self._runs(study)
            drawing = FIGURES[name].build(runs, self._wanted)
        except NoRunsError as error:
            print(f"no figure {name}: {error}", file=sys.stderr)
            return FAILED
        except (NotThereError, DecodeError, ValueError, OSError) as error:
            again = f"`{STUDIES[study].command}` runs what is missing"
            print(f"no figure {name}: {' '.join(str(error).split())}; {again}", file=sys.stderr)
            return LEFT_OUT if isinstance(error, NotThereError) else FAILED
        try:
            files = write(drawing, runs, self._out)
        except OSError as error:
            print(
                f"the figure is not written: {self._out}: {error.strerror}: give a folder you can write",
                file=sys.stderr,
            )
            return FAILED
        print(f"{drawing.title}: {', '.join(str(path) for path in files.values())}")
        for line in drawing.missing:
            print(f"  missing: {line}")
        self.drawn.setdefault(f"{study}.{runs.fingerprint}", {}).update(files)
        return DRAWN

    def _runs(self, study: str) -> StudyRuns:
        from analysis.runs import read_or_explain

        if study not in self._studies:
            self._studies[study] = read_or_explain(
                self._uri, experiment=self._experiment, study=study, fingerprint=self._fingerprint
            )
        return self._studies[study]


def write(drawing: Drawing, runs: StudyRuns, folder: Path) -> dict[str, Path]:
    """Write a figure as PNG and PDF, and its caption; a variant never overwrites another one's.

    Returns:
        The files, by their names.

    Raises:
        OSError: the folder cannot be written.
    """
    from analysis.figures.style import as_bytes

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{drawing.name}-{runs.fingerprint}"
    files = {}
    for extension, content in as_bytes(drawing.figure).items():
        path = files[f"{stem}.{extension}"] = folder / f"{stem}.{extension}"
        write_bytes(path, content)
    path = files[f"{stem}.md"] = folder / f"{stem}.md"
    write_text(path, caption_text(drawing, runs))
    return files


def draw_figures(
    names: Iterable[str],
    uri: str,
    *,
    experiment: str = DEFAULT_EXPERIMENT,
    fingerprint: str | None = None,
    runs_root: str | Path = "runs",
    out: str | Path = "figures",
    clips: Sequence[str] = (),
    keeper: Keeper | None = None,
    strict: bool = True,
) -> int:
    """Draw figures, write them to files and keep these in MLflow; where that cannot be done, say so in one line.

    Args:
        names: some of ``FIGURES``.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        fingerprint: which variant of the study; None = the one launched last.
        runs_root: folder of the run directories: features, weights and clips are found through them.
        out: folder of the files, made when it is not there.
        clips: paths in the manifest for figures that show clips; none = their own choice.
        keeper: keeps the files; None = one for this store.
        strict: whether a figure that the runs have nothing for is a failure.

    Returns:
        The exit code: 0 when all figures are drawn, 1 when not.
    """
    wanted = Wanted(Path(runs_root), tuple(clips))
    pen = _Pen(uri, experiment=experiment, fingerprint=fingerprint, out=Path(out), wanted=wanted)
    became = [pen.draw(name) for name in names]
    keeper = keeper or Keeper(uri, experiment)
    for of, files in pen.drawn.items():
        kept = {f"figures/{name}": path for name, path in files.items()}
        keeper.keep(kept, kind="figures", of=of, description=_description(*of.split(".")))
    return 1 if FAILED in became or (strict and LEFT_OUT in became) else 0


def _description(study: str, fingerprint: str) -> str:
    return (
        f"Figures of the study {study}, variant {fingerprint}; the text beside each says which runs it is made of.\n\n"
        f"    uv run analysis/make_figures.py --study {study} --fingerprint {fingerprint}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw the figures from the runs in MLflow.")
    parser.add_argument("--figure", choices=sorted([*FIGURES, *BOTH]), help="one of them (default: all)")
    add_store_options(
        parser,
        studies={known.study for known in FIGURES.values()},
        what="figures",
        runs_root="run directories, where features, weights and clips are found; MLflow is brought up to date with them"
        " first",
    )
    parser.add_argument(
        "--clips",
        default="",
        help="clips to show in Figures 4 and 5: paths in the manifest, with commas between (default: the first"
        " held-out clip of some classes)",
    )
    return parser


def _chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    names = list(BOTH.get(options.figure, (options.figure,))) if options.figure else list(FIGURES)
    of_study = [name for name in names if options.study in (None, FIGURES[name].study)]
    if not of_study:
        parser.error(f"--figure {options.figure} belongs to the study {FIGURES[names[0]].study}")
    if options.fingerprint and len({FIGURES[name].study for name in of_study}) > 1:
        parser.error("--fingerprint is of one study: say which with --study or --figure")
    return of_study


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and draw the figures.

    Args:
        argv: the arguments without the program's name; None = those of this process.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    names = _chosen(options, parser)
    return draw_figures(
        names,
        **bring_up_to_date(options),
        fingerprint=options.fingerprint,
        runs_root=options.runs_root,
        out=options.out,
        clips=[path for path in options.clips.split(",") if path],
        keeper=keeper_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
