"""The studies that have tables: what launches them, and what is made of their runs.

Read from ``experiments/conf/study``, without Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "experiments" / "conf" / "study"


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        script: what launches it.
        tables: by the name that ``--table`` takes, the function of analysis/tables that makes it, ``module:function``.
        figures: names of its figures' files before the variant, in the paper's order.
    """

    script: str
    tables: dict[str, str]
    figures: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line that launches it."""
        return f"uv run {self.script}"


def read_studies(folder: Path = FOLDER) -> dict[str, Study]:
    """Return the studies by name, in the order of the paper's tables; those without tables are left out."""
    configs = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    with_tables = [config for config in configs if config.get("tables")]
    return {
        config["name"]: Study(config["script"], dict(config["tables"]), tuple(config["figures"]))
        for config in sorted(with_tables, key=_place)
    }


def _place(config: dict[str, Any]) -> str:
    return min(config["tables"])


STUDIES = read_studies()
"""By name, in the order of the paper's tables."""

TABLES = {name: study for study, known in STUDIES.items() for name in known.tables}
"""The study that each table belongs to."""
