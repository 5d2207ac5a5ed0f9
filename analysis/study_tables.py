"""Tables of one variant of a study, and their files."""

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
    """Runs and tables of one variant of a study."""

    runs: StudyRuns
    tables: Sequence[Table]

    @property
    def name(self) -> str:
        """Name of the variant: ``relaxation.1a2b3c4d``."""
        return f"{self.runs.study}.{self.runs.study_hash}"

    @property
    def anchor(self) -> str:
        """HTML anchor of its section in the report."""
        return f"{self.runs.study}-{self.runs.study_hash}"

    def figures(self, folder: Path) -> list[Path]:
        """Return the variant's PNG files in a folder, in paper order."""
        stems = (f"{name}-{self.runs.study_hash}" for name in STUDIES[self.runs.study].figures)
        return [path for stem in stems if (path := folder / f"{stem}.png").is_file()]


def make_study_tables(
    uri: str, *, experiment: str, study: str, study_hash: str | None = None, tables: Sequence[str] | None = None
) -> StudyTables:
    """Read a variant of a study and build its tables.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: name of the study.
        study_hash: which variant; None = the one launched last.
        tables: names of tables, as ``--table`` takes them; None = all.

    Raises:
        NoRunsError: if there are no runs for a table, or the store cannot be read.
    """
    runs = read_or_explain(uri, experiment=experiment, study=study, study_hash=study_hash)
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
    """Call ``module:function`` of analysis/tables; None if no run belongs to it."""
    module, function = maker.split(":")
    table: Table | None = getattr(importlib.import_module(f"analysis.tables.{module}"), function)(runs)
    return table


def write_tables(study_tables: StudyTables, folder: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Write one file per table and format, named by study hash.

    Args:
        study_tables: tables of one variant.
        folder: created if missing.
        formats: some of ``RENDERERS``.

    Returns:
        The files by name.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for table in study_tables.tables:
        for extension in formats:
            name = f"{table.name}-{study_tables.runs.study_hash}.{extension}"
            files[name] = folder / name
            write_text(files[name], RENDERERS[extension](table))
    return files
