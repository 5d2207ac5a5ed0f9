"""Commands print what a terminal can show, and read and write files in UTF-8 whatever the locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TINY_OVERRIDES

TERMINALS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}


def _run(folder: Path, terminal: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=folder, env={**os.environ, **TERMINALS[terminal]}, capture_output=True)


def test_a_study_ends_with_its_table_on_any_terminal(tmp_path: Path) -> None:
    """Names that Latin-1 lacks; the table has dashes and a plus-minus sign."""
    root = Path(__file__).resolve().parents[2]
    overrides = [item for item in TINY_OVERRIDES if not item.startswith("tracking")]
    study = [*overrides, "relaxation=[none]", "seeds=[0,1]", "data.name='čaj'", "training.epochs=1"]
    study += ["training.global_batch_size=6", "optim.groups.base.warmup_epochs=0", "training.keep_epochs=[]"]
    first = _run(tmp_path, "utf-8", sys.executable, str(root / "launch/sweep_relaxation.py"), *study)
    assert first.returncode == 0, first.stdout.decode() + first.stderr.decode()
    for command in (["launch/sweep_relaxation.py", *study], ["launch/status.py"], ["analysis/make_tables.py"]):
        done = _run(tmp_path, "latin-1", sys.executable, str(root / command[0]), *command[1:])
        assert done.returncode == 0, (command[0], done.stderr)
        assert b"UnicodeEncodeError" not in done.stderr
        assert command[0] == "launch/status.py" or b"?aj" in done.stdout


@pytest.mark.parametrize("script", ["launch/sweep_relaxation.py", "launch/status.py", "experiments/pretrain.py"])
def test_an_error_is_printed_on_any_terminal(tmp_path: Path, script: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = _run(tmp_path, "ascii", sys.executable, str(root / script), "runs_root=runs", "ширина=3")
    assert done.returncode == 2
    assert b"=3: " in done.stderr  # Python prints the rest as escapes
    assert b"Traceback" not in done.stderr
