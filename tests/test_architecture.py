"""The arrows between packages and modules, as pyproject.toml lists them for import-linter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_import_follows_the_arrows() -> None:
    command = [shutil.which("lint-imports", path=str(Path(sys.executable).parent)), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_rooms_on_top() -> None:
    modules = {path.stem for path in (ROOT / "crisscross").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "crisscross").glob("*/__init__.py")}
    assert modules == {"pretrain", "finetune", "evaluate", "run_experiment"}
    assert len(packages) == 11
    assert {path.parent.name for path in (ROOT / "launch").glob("*/__init__.py")} == {"study", "local", "slurm", "job"}
