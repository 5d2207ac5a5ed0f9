"""What fails a test that leaves something behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leftovers import MARK, watched
from tests.warm import warm_python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    return tmp_path


def _watched(folder: Path, name: str):
    return watched(name, mounts_below=folder, temporary=folder / "temporary", patience_s=0.3)


def test_nothing_is_left(folder: Path) -> None:
    with _watched(folder, "one") as left:
        subprocess.run(["true"], check=True)
    assert left == []
    assert MARK not in os.environ


@pytest.mark.parametrize("python", ["own", "warm"])
def test_a_process_that_goes_on(folder: Path, python: str) -> None:
    script = folder / "sleep.py"
    script.write_text("import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)")
    command = [sys.executable] if python == "own" else warm_python()
    with _watched(folder, f"a child of {python}") as left:
        subprocess.run([*command, str(script)], check=True)  # it leaves its own child to init
    (line,) = left
    assert line.endswith(": sleep 1000")
    os.kill(int(line.removeprefix("process ").partition(":")[0]), 9)


def test_a_file_for_a_moment_that_stays(folder: Path) -> None:
    with _watched(folder, "one") as left:
        (folder / "temporary" / "file").touch()
    assert left == [f"file {folder / 'temporary' / 'file'}"]


def test_a_mount_that_stays(folder: Path, small_disk) -> None:
    with _watched(folder, "one") as left:
        disk = small_disk("100k")
    assert left == [f"mount {disk}"]
