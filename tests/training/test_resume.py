"""A run that is killed anywhere, any number of times, ends with the weights and history of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.training.driver import FAULTS, in_process, inject_and_resume

WITH_WORKERS = (
    *("SIGKILL in the middle of a step", "SIGKILL in the middle of a checkpoint write"),
    *("SIGTERM", "SIGTERM to the whole group", "SIGINT", "SIGUSR2"),
)
"""Faults that may occur while loader processes work, or reach them too."""

TOTAL_STEPS = 9  # 3 epochs of 12 clips in batches of 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


def _make(folder: Path, name: str, *overrides: str) -> RunDirectory:
    # A checkpoint at the end of each epoch: a kill loses up to three steps, which are repeated.
    config = tiny_config("pretrain", folder, "training.keep_epochs=[1,2]", *overrides)
    return RunDirectory.create("pretrain", {**config, "runs_root": str(folder / name)})


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> RunDirectory:
    run = _make(folder, "uninterrupted")
    assert in_process(run) == 0
    assert [step for step, _ in history(run)] == list(range(1, TOTAL_STEPS + 1))
    return run


def _assert_equal(run: RunDirectory, uninterrupted: RunDirectory) -> None:
    assert run.identity == uninterrupted.identity
    assert history(run) == history(uninterrupted)
    assert_same_state(final_state(run), final_state(uninterrupted))
    assert run.result["steps"] == TOTAL_STEPS


@pytest.mark.parametrize(
    ("fault", "num_workers"),
    [(fault, 0) for fault in FAULTS] + [(fault, 2) for fault in WITH_WORKERS],
)
def test_one_fault(folder: Path, uninterrupted: RunDirectory, fault: str, num_workers: int) -> None:
    run = _make(folder, f"{fault}-{num_workers}", f"execution.num_workers={num_workers}")
    inject_and_resume(run, fault, at_step=4)
    _assert_equal(run, uninterrupted)


def test_many_faults(folder: Path, uninterrupted: RunDirectory) -> None:
    run = _make(folder, "often", "execution.num_workers=1")
    for fault, at_step in (
        ("SIGINT", 0),
        ("SIGKILL in the middle of a step", 2),
        ("SIGKILL at the end of an epoch", 3),
        ("SIGKILL before the checkpoint is declared", 3),
        ("SIGKILL between a checkpoint and its hash", 5),
        ("SIGTERM", 4),
        ("SIGKILL in the middle of a checkpoint write", 6),
        ("SIGUSR2", 6),
        ("SIGKILL in the middle of a step", 8),
        ("SIGKILL before the result", 9),
    ):
        assert in_process(run, fault, at_step=at_step) in (-9, 75), fault
    assert in_process(run) == 0
    _assert_equal(run, uninterrupted)


def test_a_signal_loses_no_step(folder: Path) -> None:
    run = _make(folder, "no step lost")
    assert in_process(run, "SIGTERM", at_step=4) == 75
    assert [step for step, _ in history(run)] == [1, 2, 3, 4, 5]
    assert (run.checkpoints / "step-000000005.pt").exists()


def test_a_corrupt_newest_checkpoint_costs_steps_but_not_the_history(folder: Path, uninterrupted: RunDirectory) -> None:
    run = _make(folder, "corrupt")
    assert in_process(run, "SIGTERM", at_step=7) == 75
    newest = run.checkpoints / "step-000000008.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 0x10
    newest.write_bytes(content)
    before = run.metrics_path.read_text()
    assert in_process(run) == 0
    assert run.metrics_path.read_text().startswith(before)  # lines that MLflow may already have do not change
    _assert_equal(run, uninterrupted)


def test_a_corrupt_checkpoint_and_a_second_kill_write_no_step_twice(folder: Path, uninterrupted: RunDirectory) -> None:
    run = _make(folder, "corrupt twice")
    assert in_process(run, "SIGTERM", at_step=7) == 75
    (run.checkpoints / "step-000000008.pt").write_bytes(b"torn")
    assert in_process(run, "SIGTERM", at_step=6) == 75  # resumes before step 8, stops before it again
    assert in_process(run) == 0
    _assert_equal(run, uninterrupted)


def test_running_what_is_done_changes_nothing(uninterrupted: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*") if path.is_file()}
    assert in_process(uninterrupted) == 0
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*") if path.is_file()} == before
