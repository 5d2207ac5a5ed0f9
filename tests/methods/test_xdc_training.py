"""XDC in the training loop: feature extraction and clustering before each epoch, killed anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crisscross.data.catalog import check_batch
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training.trainer import Trainer
from crisscross.utils.files import read_json
from tests.methods.support import tiny_run
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.training.driver import in_process, in_ranks

XDC = ("method=xdc", "method.num_clusters=3", "method.recluster_every_epochs=1")
FEW_CLIPS = "none, few clips at a time"  # in all starts: the bits depend on the batch size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xdc")


def _make(folder: Path, name: str, *overrides: str) -> RunDirectory:
    return tiny_run(folder, name, *XDC, *overrides)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> RunDirectory:
    run = _make(folder, "uninterrupted")
    assert in_process(run, FEW_CLIPS) == 0
    return run


def _assert_equal(run: RunDirectory, uninterrupted: RunDirectory) -> None:
    assert history(run) == history(uninterrupted)
    assert_same_state(final_state(run), final_state(uninterrupted))


def _clips_seen(run: RunDirectory, epoch: int) -> int:
    return read_json(run.path / "features" / f"epoch{epoch}" / "part1of1" / "done.json")["clips"]


def test_a_run_clusters_before_each_epoch(uninterrupted: RunDirectory) -> None:
    steps = history(uninterrupted)
    assert [step for step, _ in steps] == list(range(1, 10))  # 3 epochs of 12 clips in batches of 4
    for name in ("loss/video", "loss/audio", "clusters/video_accuracy", "clusters/audio_accuracy"):
        assert name in steps[0][1]
    state = final_state(uninterrupted)["method"]
    assert state["clusters_epoch"] == 2
    for modality in ("video", "audio"):
        assert state[f"{modality}_clusters"].dtype == torch.int64
        assert set(state[f"{modality}_clusters"].tolist()) == {0, 1, 2}
    assert not [*(uninterrupted.path / "features").iterdir()]  # deleted after training
    assert uninterrupted.result["backbones"].keys() == {"video", "audio"}


def test_many_faults(folder: Path, uninterrupted: RunDirectory) -> None:
    run = _make(folder, "often", "execution.max_steps_this_launch=4")
    assert in_process(run, "SIGTERM in the extraction", at_step=2) == 75
    assert run.progress["state"] == "interrupted"
    assert _clips_seen(run, 0) == 8  # of 12: finished features are kept
    assert in_process(run, "SIGTERM in the extraction", at_step=2) == 75
    assert _clips_seen(run, 1) == 4  # the first batch was the last of epoch 0: no feature is extracted twice
    assert in_process(run, "SIGKILL in the extraction", at_step=2) == -9
    assert _clips_seen(run, 1) == 4
    assert in_process(run, "SIGKILL in the clustering", at_step=2) == -9
    assert in_process(run, FEW_CLIPS) == 75
    assert history(run)[-1][0] == 7  # four steps later, in the middle of epoch 2
    assert in_process(run, FEW_CLIPS) == 0
    _assert_equal(run, uninterrupted)


def test_features_of_other_weights_are_not_used(folder: Path, uninterrupted: RunDirectory) -> None:
    """A start that skips a damaged checkpoint finds features of later weights."""
    run = _make(folder, "stale")
    assert in_process(run, "SIGKILL in the clustering", at_step=3) == -9
    assert _clips_seen(run, 1) == 12
    for path in (run.path / "features" / "epoch1" / "part1of1").glob("*.f32"):
        np.zeros(path.stat().st_size // 4, np.float32).tofile(path)
    (run.checkpoints / "step-000000003.pt").write_bytes(b"torn")
    assert in_process(run, FEW_CLIPS) == 0
    _assert_equal(run, uninterrupted)


def test_a_fresh_head_has_no_momentum(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, remembered = _make(folder, "momentum", "method.recluster_every_epochs=2"), []
    original = Trainer._one_step

    def watched(self, batches):
        known = self.optimizer.state
        remembered.append(
            (self.network.video_head.weight in known, self.network.video_backbone.conv1[0].weight in known)
        )
        return original(self, batches)

    monkeypatch.setattr(Trainer, "_one_step", watched)
    assert run_experiment(run)
    before_clustering = {0: (False, False), 6: (False, True)}  # no clustering before epoch 1: heads and momentum stay
    assert remembered == [before_clustering.get(step, (True, True)) for step in range(9)]


def test_two_processes_stop_and_end_alike(folder: Path) -> None:
    """On CPUs, the two processes' running statistics differ at the end of an epoch; a checkpoint has rank 0's."""
    two = ("execution.num_devices=2", "training.epochs=2")
    whole = _make(folder, "two whole", *two)
    assert in_ranks(whole, 2) == [0, 0]
    pieces = _make(folder, "two pieces", *two, "execution.max_steps_this_launch=3")
    assert in_ranks(pieces, 2, "SIGTERM in the extraction", at_step=1) == [75, 75]  # one gets the signal, both exit
    assert history(pieces) == []
    assert in_ranks(pieces, 2) == [75, 75]
    assert in_ranks(pieces, 2) == [0, 0]
    _assert_equal(pieces, whole)
    assert set(final_state(whole)["method"]["video_clusters"].tolist()) == {0, 1, 2}


def test_more_clusters_than_clips_are_refused_before_a_launch(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"method.num_clusters=16 is more than the 12 clips of the training split"):
        check_batch(tiny_config("pretrain", folder, "method=xdc"))
