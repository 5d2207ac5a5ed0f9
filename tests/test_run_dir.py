"""Run directories and the metrics log: what is there twice is one, what is cut is cut at the right place."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crisscross.run.metrics_log import MetricsLog, read_metrics
from crisscross.run.run_dir import AlreadyRunningError, RunDirectory
from crisscross.utils import git as code_version
from crisscross.utils.files import write_atomically, write_json, write_text
from crisscross.utils.git import git_state

CONFIG = {
    "method": {"name": "crisscross"},
    "relaxation": "mild",
    "seed": 3,
    "data": {"name": "my clips/2", "fingerprint": "f"},
    "runs_root": "",
}


@pytest.fixture
def config(tmp_path: Path) -> dict:
    return {**copy.deepcopy(CONFIG), "runs_root": str(tmp_path / "runs")}


def test_the_same_experiment_is_the_same_folder(config: dict) -> None:
    one = RunDirectory.create("pretrain", config)
    other = RunDirectory.create("pretrain", {**config, "tracking": {"uri": "elsewhere"}})
    assert one == other
    assert one.label == "crisscross-mild-my_clips_2-s3"
    assert one.path.name == f"{one.label}-{one.identity[:12]}"
    assert RunDirectory.create("pretrain", {**config, "seed": 4}) != one


def test_the_folder_is_private(config: dict) -> None:
    assert RunDirectory.create("pretrain", config).path.stat().st_mode & 0o077 == 0


def test_studies_add_up(config: dict) -> None:
    RunDirectory.create("pretrain", config, studies={"a": {"table": 3}})
    run = RunDirectory.create("pretrain", config, studies={"b": {"table": 1}})
    assert run.about["studies"] == {"a": {"table": 3}, "b": {"table": 1}}


def test_opening_what_is_no_run_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run directory \(no config.yaml\): launch a study"):
        RunDirectory.open(tmp_path)


def test_a_root_that_is_a_file_names_the_key(config: dict, tmp_path: Path) -> None:
    write_text(tmp_path / "runs", "in the way")
    with pytest.raises(OSError, match=r"runs_root=.*: choose a folder you can write"):
        RunDirectory.create("pretrain", config)


def test_the_lock_names_its_holder(config: dict) -> None:
    run = RunDirectory.create("pretrain", config)
    assert not run.is_locked
    with run.lock():
        assert run.is_locked
        with pytest.raises(AlreadyRunningError, match=rf"already running \(process {os.getpid()} on "), run.lock():
            pass
    assert not run.is_locked


def test_the_state_of_the_code_is_that_of_the_start(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def ask_anew() -> dict:
        code_version._git_state.cache_clear()
        return git_state(tmp_path)

    assert ask_anew() == {}
    git("init", "-q")
    git("config", "status.showUntrackedFiles", "no")
    write_text(tmp_path / "pyproject.toml", "")
    (tmp_path / "crisscross").mkdir()
    write_text(tmp_path / "crisscross" / "code.py", "")
    assert ask_anew() == {}  # no commit yet
    git("add", "-A")
    git("commit", "-qm", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    write_text(tmp_path / "README.md", "not code")
    assert ask_anew() == clean
    git_state(tmp_path)["commit"] = "changed by a caller"
    write_text(tmp_path / "crisscross" / "new.py", "")
    assert git_state(tmp_path) == clean
    assert ask_anew() == {**clean, "dirty": True}
    write_json(tmp_path / "snapshot.json", {"snapshot": "5" * 16, "commit": "c" * 40, "dirty": False, "created": 1.0})
    assert ask_anew() == {"commit": "c" * 40, "dirty": False, "snapshot": "5" * 16}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(file) -> None:
        file.write(b"half of the ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_on_a_full_disk_a_run_still_says_why_it_failed(config: dict, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("100k")
    run = RunDirectory.create("pretrain", {**config, "runs_root": str(disk)})
    run.write_progress(state="queued")
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    run.write_progress(state="failed", step=12, error="No space left on device")
    assert run.progress is not None
    assert (run.progress["state"], run.progress["error"]) == ("failed", "No space left on device")
    run.write_progress(state="failed")
    assert run.progress.keys() == {"state", "time"}
    assert not list(run.path.glob(".progress.*"))


def test_the_metrics_log_is_truncated_to_what_is_durable(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics_log = MetricsLog(path)
    metrics_log.write(1, {"loss": 1.0})
    covered = metrics_log.sync()
    metrics_log.write(2, {"loss": 2.0})
    metrics_log.close()
    metrics_log = MetricsLog(path, resume_at=covered, durable_step=1)
    metrics_log.write(1, {"loss": 9.0})  # in the log already
    metrics_log.write(2, {"loss": 2.5})
    metrics_log.close()
    assert [(line["step"], line["metrics"]["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 2.5)]
    assert [line["step"] for line in read_metrics(path, start=covered)] == [2]
    assert [line["step"] for line in read_metrics(path, end=covered)] == [1]


def test_a_metrics_log_shorter_than_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 bytes, the checkpoint covers 10: the history was damaged"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_at=10)


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time_ms": 5, "metrics": {}}\n{"step": 2, "ti')
    assert [line["step"] for line in read_metrics(path)] == [1]
    assert list(read_metrics(tmp_path / "nothing")) == []
