"""Draw the figures from the runs in MLflow: PNG, PDF and caption.

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

from analysis.cli import add_study_options, artifacts_of, sync_store
from analysis.figures.base import Drawing, FigureOptions, NotThereError, caption_text
from analysis.runs import NoRunsError, StudyRuns, read_or_explain
from analysis.studies import STUDIES
from crisscross.tracking.address import DEFAULT_EXPERIMENT
from crisscross.tracking.artifacts import ArtifactLogger
from crisscross.utils.files import write_bytes, write_text
from crisscross.utils.terminal import print_what_can_be_printed


@dataclass(frozen=True)
class FigureEntry:
    """A figure and its source.

    Attributes:
        study: the study whose runs it shows.
        module: module of ``analysis.figures`` with a function ``build``; imported when the figure is drawn.
    """

    study: str
    module: str

    def build(self, runs: StudyRuns, options: FigureOptions) -> Drawing:
        """Draw the figure."""
        return importlib.import_module(f"analysis.figures.{self.module}").build(runs, options)


FIGURES = {
    "3-left": FigureEntry("async", "figure3_left"),
    "3-right": FigureEntry("async", "figure3_right"),
    "4": FigureEntry("async", "figure4"),
    "relaxation": FigureEntry("relaxation", "relaxation"),
    "5": FigureEntry("retrieval", "figure5"),
}
"""The figures by the name that ``--figure`` takes."""
BOTH = {"3": ("3-left", "3-right")}
DRAWN, LEFT_OUT, FAILED = range(3)
"""Result of one figure; LEFT_OUT if the study has no runs for it."""


class FigureWriter:
    """Draws and writes figures of one store; prints errors as one line."""

    def __init__(self, uri: str, *, experiment: str, study_hash: str | None, out: Path, options: FigureOptions) -> None:
        self._uri, self._experiment, self._study_hash = uri, experiment, study_hash
        self._out, self._options = out, options
        self._studies: dict[str, StudyRuns] = {}
        self.drawn: dict[str, dict[str, Path]] = {}

    def draw(self, name: str) -> int:
        """Draw a figure and write its files; return ``DRAWN``, ``LEFT_OUT`` or ``FAILED``."""
        from crisscross.data.media.streams import DecodeError  # brings PyAV, which --help does not need

        study = FIGURES[name].study
        try:
            runs = self._runs(study)
            drawing = FIGURES[name].build(runs, self._options)
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
        self.drawn.setdefault(f"{study}.{runs.study_hash}", {}).update(files)
        return DRAWN

    def _runs(self, study: str) -> StudyRuns:
        if study not in self._studies:
            self._studies[study] = read_or_explain(
                self._uri, experiment=self._experiment, study=study, study_hash=self._study_hash
            )
        return self._studies[study]


def write(drawing: Drawing, runs: StudyRuns, folder: Path) -> dict[str, Path]:
    """Write a figure as PNG and PDF, and its caption as Markdown.

    Args:
        drawing: the figure.
        runs: the runs of its study.
        folder: created if missing.

    Returns:
        The files by name.

    Raises:
        OSError: if the folder cannot be written.
    """
    from analysis.figures.style import as_bytes  # brings matplotlib, which --help does not need

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{drawing.name}-{runs.study_hash}"
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
    study_hash: str | None = None,
    runs_root: str | Path = "runs",
    out: str | Path = "figures",
    clips: Sequence[str] = (),
    artifacts: ArtifactLogger | None = None,
    strict: bool = True,
) -> int:
    """Draw, write and log figures; print errors as one line.

    Args:
        names: some of ``FIGURES``.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study_hash: which variant of the study; None = the one launched last.
        runs_root: folder of the run directories, which hold features, weights and the paths of clips.
        out: folder of the files, created if missing.
        clips: paths in the manifest for figures that show clips; empty = a fixed choice.
        artifacts: logs the files; None = a logger for this store.
        strict: whether a figure without runs is a failure.

    Returns:
        The exit code: 0 if all figures are drawn, else 1.
    """
    options = FigureOptions(Path(runs_root), tuple(clips))
    writer = FigureWriter(uri, experiment=experiment, study_hash=study_hash, out=Path(out), options=options)
    results = [writer.draw(name) for name in names]
    artifacts = artifacts or ArtifactLogger(uri, experiment)
    for of, files in writer.drawn.items():
        logged = {f"figures/{name}": path for name, path in files.items()}
        artifacts.log(logged, kind="figures", of=of, description=_description(*of.split(".")))
    return 1 if FAILED in results or (strict and LEFT_OUT in results) else 0


def _description(study: str, study_hash: str) -> str:
    return (
        f"Figures of the study {study}, variant {study_hash}; the text beside each says which runs it is made of.\n\n"
        f"    uv run analysis/make_figures.py --study {study} --fingerprint {study_hash}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw the figures from the runs in MLflow.")
    parser.add_argument("--figure", choices=sorted([*FIGURES, *BOTH]), help="one of them (default: all)")
    add_study_options(
        parser,
        studies={entry.study for entry in FIGURES.values()},
        what="figures",
        runs_root="folder of the run directories, which hold features and weights and are synced to MLflow first",
    )
    parser.add_argument(
        "--clips",
        default="",
        help="clips to show in Figures 4 and 5: paths in the manifest, separated by commas (default: the first"
        " held-out clip of some classes)",
    )
    return parser


def _chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    names = list(BOTH.get(options.figure, (options.figure,))) if options.figure else list(FIGURES)
    of_study = [name for name in names if options.study in (None, FIGURES[name].study)]
    if not of_study:
        parser.error(f"--figure {options.figure} belongs to the study {FIGURES[names[0]].study}")
    if options.study_hash and len({FIGURES[name].study for name in of_study}) > 1:
        parser.error("--fingerprint is of one study: name it with --study or --figure")
    return of_study


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
    names = _chosen(options, parser)
    return draw_figures(
        names,
        **sync_store(options),
        study_hash=options.study_hash,
        runs_root=options.runs_root,
        out=options.out,
        clips=[path for path in options.clips.split(",") if path],
        artifacts=artifacts_of(options),
    )


if __name__ == "__main__":
    sys.exit(main())
