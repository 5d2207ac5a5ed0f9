"""The studies that have tables: what launches them, and what is made of their runs. Nothing heavy is imported."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.runs import StudyRuns
    from analysis.tables.base import Table


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        script: what launches it.
        tables: by the name that ``--table`` knows, the function that makes it, as ``module:function``.
        figures: what the files of its figures are called before the variant, in the paper's order.
    """

    script: str
    tables: dict[str, str]
    figures: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line that launches it."""
        return f"uv run {self.script}"

    def build(self, runs: StudyRuns, name: str) -> Table | None:
        """Make one of its tables; None where the runs have nothing for it."""
        module, function = self.tables[name].split(":")
        return getattr(importlib.import_module(f"analysis.tables.{module}"), function)(runs)


STUDIES = {
    "async": Study("launch/sweep_async.py", {"1": "paper:table1"}, ("figure3-left", "figure3-right", "figure4")),
    "dataset_size": Study("launch/sweep_dataset_size.py", {"2": "paper:table2"}),
    "relaxation": Study("launch/sweep_relaxation.py", {"3": "paper:table3"}, ("relaxation",)),
    "methods": Study("launch/compare_methods.py", {"4": "paper:table4", "5": "paper:table5", "frozen": "paper:frozen"}),
    "retrieval": Study("launch/retrieve.py", {"retrieval": "paper:retrieval"}, ("figure5",)),
}
"""By name, in the order of the paper's tables."""

TABLES = {name: study for study, known in STUDIES.items() for name in known.tables}
"""The study that each table belongs to."""
