"""Checkpoints: atomic writes, verified reads, and fallback to an earlier checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training import checkpoint
from crisscross.training.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    load_checkpoint,
    load_latest,
    require_space,
)
from tests.support import tiny_config


def _state(value: float) -> dict:
    return {"weights": torch.full((1000,), value), "nested": {"steps": [1, 2, 3]}}


def _save(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.save(step, _state(step), metrics_bytes=10 * step)
    writer.wait()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    _save(CheckpointWriter(tmp_path / "checkpoints"), 5)
    state, about = load_latest(tmp_path / "checkpoints")
    assert torch.equal(state["weights"], _state(5)["weights"])
    assert state["nested"] == {"steps": [1, 2, 3]}
    assert (about["step"], about["metrics_bytes"]) == (5, 50)
    assert json.loads((tmp_path / "durable.json").read_text()) == {"history_step": 5, "metrics_bytes": 50}


def test_keeps_the_last_two_and_the_listed_steps(tmp_path: Path) -> None:
    _save(CheckpointWriter(tmp_path / "checkpoints", keep_steps=[2]), 1, 2, 3, 4, 5)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt")) == [
        f"step-{step:09d}.pt" for step in (2, 4, 5)
    ]


def test_later_changes_to_the_tensors_do_not_reach_the_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints")
    state = _state(1.0)
    writer.save(1, state, metrics_bytes=0)
    state["weights"].zero_()
    writer.wait()
    assert load_latest(tmp_path / "checkpoints")[0]["weights"].eq(1.0).all()


@pytest.mark.parametrize("damage", ["flip a byte", "cut", "empty", "no hash", "broken hash file"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    _save(CheckpointWriter(folder), 1, 2)
    newest = folder / "step-000000002.pt"
    content = bytearray(newest.read_bytes())
    if damage == "flip a byte":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "cut":
        newest.write_bytes(content[:-7])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "no hash":
        newest.with_suffix(".json").unlink()
    else:
        newest.with_suffix(".json").write_text('{"step": 2, "sha')
    state, about = load_latest(folder)
    assert about["step"] == 1
    assert state["weights"].eq(1.0).all()
    assert "step-000000002" in caplog.text
    assert "trying the checkpoint before it" in caplog.text


def test_damaged_checkpoints_never_crowd_out_good_ones(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    _save(CheckpointWriter(folder), 20, 21)
    for step in (20, 21):
        (folder / f"step-{step:09d}.json").unlink()
    assert load_latest(folder, discard_damaged=True) is None
    assert list(folder.iterdir()) == []
    _save(CheckpointWriter(folder), 12, 13)
    assert load_latest(folder)[1]["step"] == 13


def test_the_committed_history_never_shrinks(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", history_step=10)
    _save(writer, 7)
    assert load_latest(tmp_path / "checkpoints")[1]["history_step"] == 10
    assert json.loads((tmp_path / "durable.json").read_text())["history_step"] == 10
    _save(writer, 12)
    assert json.loads((tmp_path / "durable.json").read_text())["history_step"] == 12


def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(CheckpointWriter(tmp_path / "checkpoints"), 1, 2)

    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_latest(tmp_path / "checkpoints")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "checkpoints") is None


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(folder)
    writer.save(1, {"weights": Path("anything but a tensor")}, metrics_bytes=0)
    writer.wait()
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        load_checkpoint(folder / "step-000000001.pt")


_FILL_A_SMALL_DISK = """
import sys
from pathlib import Path
import resource, signal
import torch
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training import checkpoint
from crisscross.training.checkpoint import CheckpointError, CheckpointWriter, load_latest
folder = Path(sys.argv[1])
writer = CheckpointWriter(folder)
writer.save(1, {"weights": torch.ones(10)}, metrics_bytes=7)
writer.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # files end here, as on a full disk
writer.save(2, {"weights": torch.ones(1_000_000)}, metrics_bytes=9)
try:
    writer.wait()
except CheckpointError as error:
    print(error)
print(load_latest(folder)[1]["step"], [path.name for path in folder.glob(".*")])
"""


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FILL_A_SMALL_DISK, str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        check=True,
    )
    message, rest = done.stdout.strip().splitlines()
    assert message.startswith(f"cannot write a checkpoint to {tmp_path / 'checkpoints'}: ")
    assert "earlier ones are intact" in message
    assert "File too large" in message
    assert rest == "1 []"


def test_an_unwritable_folder_is_an_error_at_the_next_save(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(folder)
    _save(writer, 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    writer.save(2, _state(2), metrics_bytes=0)
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to"):
        writer.save(3, _state(3), metrics_bytes=0)


def test_an_unexpected_error_is_shown_with_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("scaler")

    monkeypatch.setattr(checkpoint, "write_atomically", fail)
    with pytest.raises(CheckpointError, match="KeyError: 'scaler'"):
        _save(CheckpointWriter(tmp_path / "checkpoints"), 1)


def test_too_little_space_is_an_error_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-000000003.pt").write_bytes(bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4_000_000_000))
    require_space(tmp_path, 4_000_001_000)  # existing checkpoints count as room
    with pytest.raises(OSError, match=r"may take 5\.0 GB more, the disk has 4\.0 GB left: free some space"):
        require_space(tmp_path, 5_000_000_000)
    run = RunDirectory.create("pretrain", tiny_config("pretrain", tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(OSError, match=r"the checkpoints of this training may take 0\.0 GB more"):
        run_experiment(run)
    assert run.progress["state"] == "failed"
    assert not run.metrics_path.exists() or not run.metrics_path.read_bytes()
