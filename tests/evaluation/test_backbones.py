"""The backbones of an evaluation, above all from the kept epochs of a pretraining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings, check_kept
from crisscross.evaluation.backbones import backbones_of, check_epoch, mismatch_warnings
from crisscross.models.backbones import random_init_backbones
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training.checkpoint import checkpoint_path, load_checkpoint
from tests.support import assert_same_state, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> RunDirectory:
    """Three epochs of three steps, the first kept; the last two checkpoints are those of epochs 1 and 3."""
    run = RunDirectory.create("pretrain", tiny_config("pretrain", folder, "training.keep_epochs=[1]", "seed=5"))
    assert run_experiment(run)
    return run


def _make(folder: Path, *overrides: str, parents: list[RunDirectory]) -> RunDirectory:
    return RunDirectory.create("downstream", tiny_config("downstream", folder, *overrides), parents=parents)


def _state_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    return dict(backbones_of(run, parse(DownstreamSettings, run.config)).state_dict())


def test_an_epoch_is_the_checkpoint_that_was_kept(folder: Path, pretrained: RunDirectory) -> None:
    kept, _ = load_checkpoint(checkpoint_path(pretrained.checkpoints, 3))
    state = _state_of(_make(folder, "weights.epoch=1", parents=[pretrained]))
    assert state.keys() == {name for name in kept["method"] if "_backbone." in name}
    for name, tensor in state.items():
        assert torch.equal(tensor, kept["method"][name])


def test_the_last_epoch_is_the_end(folder: Path, pretrained: RunDirectory) -> None:
    at_the_end = _state_of(_make(folder, parents=[pretrained]))
    assert_same_state(_state_of(_make(folder, "weights.epoch=3", parents=[pretrained])), at_the_end)
    first = _state_of(_make(folder, "weights.epoch=1", parents=[pretrained]))
    assert not torch.equal(first["video_backbone.conv1.0.weight"], at_the_end["video_backbone.conv1.0.weight"])


def test_epoch_zero_is_before_the_first_step(folder: Path, pretrained: RunDirectory) -> None:
    run = _make(folder, "weights.epoch=0", parents=[pretrained])
    model = parse(DownstreamSettings, run.config).model
    assert_same_state(_state_of(run), dict(random_init_backbones(model, seed=5).state_dict()))


def test_an_epoch_is_an_experiment_of_its_own(folder: Path, pretrained: RunDirectory) -> None:
    runs = [_make(folder, *some, parents=[pretrained]) for some in ([], ["weights.epoch=1"], ["weights.epoch=0"])]
    assert len({run.identity for run in runs}) == 3
    assert runs[1].label == "crisscross-mild-demo-s5-e1-svm-demo"
    assert run_experiment(runs[1])


def test_an_epoch_that_was_not_kept_is_refused(folder: Path, pretrained: RunDirectory) -> None:
    with pytest.raises(
        ValueError, match=r"weights.epoch=2: .* has kept epochs 0, 1, 3: choose one of these, or"
    ) as error:
        check_epoch(pretrained, 2)
    assert "training.keep_epochs=[2]" in str(error.value)
    with pytest.raises(ValueError, match=r"weights.epoch=2: "):
        run_experiment(_make(folder, "weights.epoch=2", parents=[pretrained]))


def test_an_unfinished_pretraining_has_the_epochs_that_it_has_kept(folder: Path, pretrained: RunDirectory) -> None:
    kept = _make(folder, "weights.epoch=1", parents=[pretrained])
    config = {**pretrained.config, "runs_root": str(folder / "unfinished")}
    config["execution"] = {**config["execution"], "max_steps_this_launch": 5}
    parent = RunDirectory.create("pretrain", config)
    with pytest.raises(ValueError, match=r"s5 is not finished and has kept epochs 0 so far: choose one of these"):
        check_epoch(parent, 1)
    assert not run_experiment(parent)
    assert check_epoch(parent, 1) == checkpoint_path(parent.checkpoints, 3)
    assert check_epoch(parent, 0) is None
    with pytest.raises(ValueError, match=r"is not finished and has kept epochs 0, 1 so far"):
        check_epoch(parent, 3)
    with pytest.raises(ValueError, match=r"has kept epochs 0, 1: choose one of these, or pretrain again"):
        check_epoch(parent, 2)
    own = _make(folder, "weights.epoch=1", f"runs_root={folder / 'unfinished'}", parents=[parent])
    assert own.identity == kept.identity
    assert_same_state(_state_of(own), _state_of(kept))


def test_a_study_checks_the_kept_epochs_first() -> None:
    training = {"epochs": 100, "keep_epochs": [10, 50, 200]}
    for epoch in (None, 0, 10, 50, 100):
        check_kept(epoch, training)
    with pytest.raises(ValueError, match=r"weights.epoch=20: the pretraining keeps epochs 0, 10, 50, 100: choose"):
        check_kept(20, training)


def test_an_epoch_needs_a_pretraining(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"weights.epoch=1 is an epoch of a pretraining: set weights.run, too"):
        run_experiment(_make(folder, "weights.epoch=1", parents=[]))


def test_another_size_is_refused(folder: Path, pretrained: RunDirectory) -> None:
    run = _make(folder, "weights.epoch=1", "model.video.width=8", parents=[pretrained])
    with pytest.raises(ValueError, match=r"has backbones of another size than the config's model node: set scale= or"):
        run_experiment(run)


def test_a_damaged_checkpoint_is_refused(folder: Path) -> None:
    run = RunDirectory.create("pretrain", tiny_config("pretrain", folder, "training.keep_epochs=[1]", "seed=6"))
    assert run_experiment(run)
    checkpoint_path(run.checkpoints, 3).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step-000000003.pt is torn or corrupt"):
        run_experiment(_make(folder, "weights.epoch=1", parents=[run]))


def test_inputs_that_differ_from_the_pretraining_are_reported(folder: Path) -> None:
    def found(*overrides: str) -> list[str]:
        return mismatch_warnings(avid, parse(DownstreamSettings, tiny_config("downstream", folder, *overrides)))

    avid = tiny_config("pretrain", folder, "method=avid", "method.num_negatives=5")
    assert found() == []
    avid["method"]["pool"] = "max"
    avid["views"]["audio"]["transform"] |= {"num_mels": None, "n_fft": 512}
    pool, spectrogram = found()
    assert pool.endswith("set downstream.features.video_layer=max to evaluate the pooling that it was trained with")
    assert spectrogram == (
        "was trained on other spectrograms (n_fft=512, not 1024; num_mels=None, not 40): set views= to that of the"
        " pretraining"
    )
    assert found("downstream.modalities=[v]", "downstream.features.video_layer=max") == []
    assert len(found("downstream.modalities=[a]")) == 1
    assert found("downstream=finetune", "downstream.frames=4", "downstream.training.epochs=3") == []
