"""The loop over many files: resumable, in shares, and safe from tasks that kill their worker."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from crisscross.data.parallel import run_all, run_resumable


def square(number: int) -> int:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def write(folder: Path, workplace: Path, name: str) -> None:
    assert workplace.parent == folder
    partial = workplace / name
    partial.write_text(name)
    partial.replace(folder / name)


def fill(folder: Path, names: list[str], **options: object) -> None:
    run_resumable(
        names,
        functools.partial(write, folder),
        lambda name: (folder / name).exists(),
        **{"folder": folder, "claim": lambda: None, "label": "files", "progress": False, "jobs": 1, **options},
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_task_that_kills_its_process_is_done_alone_and_the_others_are_not_lost() -> None:
    done = run_all(range(20), square, label="squares", jobs=2, progress=False, on_crash=lambda number: -number)
    assert dict(done) == {number: -13 if number == 13 else number**2 for number in range(20)}


def test_without_a_result_for_a_crash_it_raises() -> None:
    with pytest.raises(BrokenProcessPool):
        list(run_all((13, 14), square, label="squares", jobs=2, progress=False))


def test_processes_that_do_not_start_are_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from crisscross.data.parallel import run_all\nlist(run_all('ab', str, label='x', jobs=2))\n")
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert found.returncode == 1
    line = (
        "RuntimeError: x: the worker processes do not start: call this under if __name__ == '__main__', or with jobs=1"
    )
    assert line in found.stderr.splitlines()


def test_few_tasks_need_no_process() -> None:
    pids = {pid for _, pid in run_all(range(3), lambda _: os.getpid(), label="pids", jobs=2, few=3, progress=False)}
    assert pids == {os.getpid()}


def test_what_is_done_is_skipped_and_shares_make_up_the_whole(tmp_path: Path) -> None:
    folder, names = tmp_path / "new" / "folder", [f"{n}" for n in range(7)]
    fill(folder, names, share=(2, 3))
    assert names_in(folder) == ["1", "4"]
    before = (folder / "1").stat().st_ino
    fill(folder, names, jobs=2)
    assert names_in(folder) == names
    assert (folder / "1").stat().st_ino == before


def test_a_folder_with_nothing_to_do_is_not_written(tmp_path: Path) -> None:
    fill(tmp_path, ["a"])
    os.utime(tmp_path, (1, 1))
    fill(tmp_path, ["a"])
    assert tmp_path.stat().st_mtime == 1


def test_a_folder_that_cannot_be_claimed_is_left_alone(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("holds something else")

    with pytest.raises(ValueError, match="holds something else"):
        fill(tmp_path, ["a"], claim=refuse)
    assert names_in(tmp_path) == []


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"jobs=0: at least 1 process is needed"):
        fill(tmp_path, ["a"], jobs=0)
    with pytest.raises(ValueError, match=r"share=3/2: give k/n with k from 1 to n"):
        fill(tmp_path, ["a"], share=(3, 2))
