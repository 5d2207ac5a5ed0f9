"""The tables of one variant of a study, made of its runs, and their files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.runs import NoRunsError, StudyRuns, read_or_explain
from analysis.studies import STUDIES
from analysis.tables import render
from analysis.tables.table import Table
from crisscross.utils.files import write_text

RENDERERS = {"md": render.markdown, "csv": render.comma_separated, "tex": render.latex}


@dataclass(frozen=True)
class StudyTables:
    """One variant of a study: its runs and the tables made of them, in their order."""

    runs: StudyRuns
    tables: Sequence[Table]

    @property
    def name(self) -> str:
        """Name of the variant: ``relaxation.1a2b3c4d``."""
        return f"{self.runs.study}.{self.runs.fingerprint}"

    @property
    def anchor(self) -> str:
        """Name of its heading on the page."""
        return f"{self.runs.study}-{self.runs.fingerprint}"

    def figures(self, folder: Path) -> list[Path]:
        """Return the pictures of this variant in a folder, in the paper's order: never those of another one."""
        stems = (f"{name}-{self.runs.fingerprint}" for name in STUDIES[self.runs.study].figures)
        return [path for stem in stems if (path := folder / f"{stem}.png").is_file()]


def section_of(
    uri: str, *, experiment: str, study: str, fingerprint: str | None = None, tables: Sequence[str] | None = None
) -> StudyTables:
    """Read a variant of a study and make its tables.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: which study.
        fingerprint: which variant of it; None = the one launched last.
        tables: which of its tables; None = all.

    Raises:
        NoRunsError: there are no runs to make one of, or the store cannot be read.
    """
    runs = read_or_explain(uri, experiment=experiment, study=study, fingerprint=fingerprint)
    if runs.evaluations.empty:
        raise NoRunsError(
            f"the study {study} has {len(runs.pretrainings)} pretrainings but no evaluation yet;"
            f" `{STUDIES[study].command}` runs what is missing"
        )
    built = [_build(STUDIES[study].tables[name], runs) for name in tables or STUDIES[study].tables]
    made = [table for table in built if table is not None]
    if not made:
        raise NoRunsError(f"nothing that the study {study} has evaluated belongs into one")
    return StudyTables(runs, made)


def _build(maker: str, runs: StudyRuns) -> Table | None:
    """Make a table with ``module:function`` of analysis/tables; None where the runs have nothing for it."""
    module, function = maker.split(":")
    table: Table | None = getattr(importlib.import_module(f"analysis.tables.{module}"), function)(runs)
    return table


def write_tables(section: StudyTables, folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Write the tables, a file each and format, and return the files by name; a variant never overwrites another one's.

    Args:
        section: whose tables.
        folder: made when it is not there.
        formats: some of ``RENDERERS``.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for table in section.tables:
        for extension in formats:
            name = f"{table.name}-{section.runs.fingerprint}.{extension}"
            files[name] = folder / name
            write_text(files[name], RENDERERS[extension](table))
    return files
