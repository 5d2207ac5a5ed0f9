"""Studies with tables, from ``experiments/conf/study`` (read without Hydra)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "experiments" / "conf" / "study"


@dataclass(frozen=True)
class Study:
    """A study and its results.

    Attributes:
        script: the script that launches it.
        tables: function of analysis/tables, as ``module:function``, by the name that ``--table`` takes.
        figures: file names of its figures without the study hash, in the paper's order.
    """

    script: str
    tables: dict[str, str]
    figures: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line that launches it."""
        return f"uv run {self.script}"


def read_studies(folder: Path = FOLDER) -> dict[str, Study]:
    """Return the studies that have tables, in order of their tables."""
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]
    with_tables = [config for config in configs if config.get("tables")]
    return {
        config["name"]: Study(config["script"], dict(config["tables"]), tuple(config["figures"]))
        for config in sorted(with_tables, key=_first_table)
    }


def _first_table(config: dict[str, Any]) -> str:
    return min(config["tables"])


STUDIES = read_studies()
"""By name, in the order of the paper's tables."""

TABLES = {name: study for study, entry in STUDIES.items() for name in entry.tables}
"""The study of each table."""
