"""From a row of the frame to its run directory: MLflow knows an experiment by its identity, and so does the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.figures.base import NotThereError
from crisscross.run_directory import RunDirectory


def run_directory(row: Mapping[str, Any], runs_root: Path) -> RunDirectory:
    """Return the run directory of an experiment.

    Args:
        row: of the frame (``kind`` and ``identity``).
        runs_root: folder of the run directories.

    Raises:
        NotThereError: it is not there.
    """
    identity = row["identity"]
    for path in sorted((runs_root / row["kind"]).glob(f"*-{identity[:12]}")):
        if (path / "run.json").is_file() and RunDirectory(path).identity == identity:
            return RunDirectory.open(path)
    raise NotThereError(
        f"the run directory of {identity[:12]} is not below {runs_root}: say where it is with --runs-root"
    )
