"""The training loop: precision, gradient accumulation, devices, sizes, and error messages."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.data.catalog import prepare
from crisscross.run.run_dir import AlreadyRunningError, RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training.trainer import NonFiniteLossError, Trainer
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.training.driver import in_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


def _make(folder: Path, *overrides: str, runs: str = "runs") -> RunDirectory:
    config = tiny_config("pretrain", folder, *overrides)
    return RunDirectory.create("pretrain", {**config, "runs_root": str(folder / runs)})


def test_every_step_logs_what_the_paper_names(folder: Path) -> None:
    run = _make(folder)
    assert run_experiment(run)
    steps = history(run)
    assert [step for step, _ in steps] == list(range(1, 10))
    expected = {"loss/total", "collapse/video_std", "collapse/audio_std", "data/fallback_fraction"}
    expected |= {f"loss/{pair}" for pair in ("v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "v2a1")}
    expected |= {"optim/lr_base", "optim/lr_predictor", "optim/gradient_norm"}
    for _, metrics in steps:
        assert metrics.keys() == expected
        assert all(math.isfinite(value) for value in metrics.values())
        assert -1 <= metrics["loss/total"] <= 1
    assert steps[0][1]["optim/lr_base"] == 0.0
    assert len({metrics["optim/lr_predictor"] for _, metrics in steps}) == 1
    assert run.progress["state"] == "done"


def test_short_clips_show_in_the_metrics(folder: Path) -> None:
    # Two consecutive segments of 2 s do not fit into 2.5 s.
    run = _make(folder, "relaxation=medium", "views.audio.seconds=2.0", "training.epochs=2")
    assert run_experiment(run)
    assert {metrics["data/fallback_fraction"] for _, metrics in history(run)} == {1.0}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_runs(folder: Path, precision: str) -> None:
    run = _make(folder, f"training.precision={precision}", "training.epochs=2")
    assert run_experiment(run)
    assert all(math.isfinite(metrics["loss/total"]) for _, metrics in history(run))


def test_accumulation_takes_the_same_steps_over_the_same_clips(folder: Path) -> None:
    run = _make(folder, "training.micro_batch_size=2", "training.epochs=2")
    whole = _make(folder, "training.epochs=2")
    assert run.identity != whole.identity  # batch norm sees two clips instead of four
    assert run_experiment(run)
    assert [step for step, _ in history(run)] == list(range(1, 7))


def test_no_epochs_leave_the_initial_weights(folder: Path) -> None:
    run = _make(folder, "training.epochs=0")
    assert run_experiment(run)
    assert history(run) == []
    assert run.result["steps"] == 0
    assert (run.path / run.result["checkpoint"]).exists()


def test_a_loss_that_is_not_finite_stops_before_the_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _make(folder, runs="broken")
    original = Trainer._one_pass

    def broken(self, batch, index, passes):
        metrics = original(self, batch, index, passes)
        return {**metrics, "loss/total": torch.tensor(math.nan)} if self.step == 4 else metrics

    monkeypatch.setattr(Trainer, "_one_pass", broken)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 4 \(of 9\).*Clips of this step: .*mp4"):
        run_experiment(run)
    assert run.progress["state"] == "failed"
    assert "step 4" in run.progress["error"]
    assert run.result is None


def test_a_file_gone_bad_stops_the_run_with_its_name(folder: Path, tmp_path: Path) -> None:
    config = tiny_config("pretrain", tmp_path)
    run = RunDirectory.create("pretrain", config)
    victim = next((tmp_path / "data").rglob("train/*/*.mp4"))
    content = victim.read_bytes()
    victim.write_bytes(content[:100])
    try:
        with pytest.raises(Exception, match=victim.name) as caught:
            run_experiment(run)
        assert "\n" not in str(caught.value)
    finally:
        victim.write_bytes(content)


def test_a_batch_larger_than_an_epoch_is_refused(folder: Path) -> None:
    run = _make(folder, "training.global_batch_size=16")
    with pytest.raises(ValueError, match=r"training.global_batch_size=16 is larger than an epoch of 12 samples"):
        run_experiment(run)


def test_one_run_directory_has_one_worker(folder: Path) -> None:
    run = _make(folder, runs="locked")
    with run.lock(), pytest.raises(AlreadyRunningError, match="is already running"):
        run_experiment(run)


def test_stops_after_max_steps_and_resumes(folder: Path) -> None:
    run = _make(folder, "execution.max_steps_this_launch=4", runs="pieces")
    assert not run_experiment(run)
    assert [step for step, _ in history(run)] == [1, 2, 3, 4]
    assert not run_experiment(run)
    assert run_experiment(run)
    whole = _make(folder, runs="whole")
    assert run_experiment(whole)
    assert history(run) == history(whole)
    assert_same_state(final_state(run), final_state(whole))


@pytest.mark.slow
def test_two_processes_train_together_and_resume_bit_for_bit(folder: Path) -> None:
    whole = _make(folder, "execution.num_devices=2", runs="two whole")
    assert in_ranks(whole, 2) == [0, 0]
    pieces = _make(folder, "execution.num_devices=2", "execution.max_steps_this_launch=5", runs="two pieces")
    assert whole.identity == pieces.identity
    job = [sys.executable, "-m", "launch.job", str(pieces.path)]
    assert subprocess.run(job, timeout=300).returncode == 75
    assert [step for step, _ in history(pieces)] == [1, 2, 3, 4, 5]
    assert in_ranks(pieces, 2) == [0, 0]
    assert history(pieces) == history(whole)
    assert_same_state(final_state(pieces), final_state(whole))


@pytest.mark.slow
def test_a_full_size_step_runs(folder: Path) -> None:
    """15.38 M + 11.17 M backbones, 8 x 112 x 112, 2 s of 80 mels, the paper's heads, batch 2."""
    full_size = ("scale=paper", "data.toy.seconds=4.0", "training.epochs=1", "training.global_batch_size=2")
    with initialize_config_module("experiments.conf", version_base="1.3"):
        overrides = [
            *full_size,
            "data.toy.num_classes=2",
            "data.toy.train_clips_per_class=1",
            "data.toy.val_clips_per_class=0",
            "data.toy.test_clips_per_class=1",
            "training.draws_per_clip=1",
            "training.precision=fp32",
            "optim.groups.base.warmup_epochs=0",
            "execution.num_workers=0",
            f"data.root={folder / 'full'}",
            f"runs_root={folder / 'runs'}",
        ]
        config = OmegaConf.to_container(compose("pretrain", overrides=overrides), resolve=True)
    run = RunDirectory.create("pretrain", {**config, "data": prepare(config["data"], progress=False)})
    assert run_experiment(run)
    assert run.result["steps"] == 1
    state = final_state(run)["method"]
    counted = sum(t.numel() for n, t in state.items() if "running" not in n and "num_batches" not in n)
    assert counted == 49_662_080
