"""The samples of each step, and the content of a batch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.loader import Clips, SegmentDataset, ViewDataset, batch_loader
from crisscross.data.sampler import EpochPlan, RankBatches
from tests.support import tiny_config


def _plan(**changes: int) -> EpochPlan:
    return EpochPlan(**{"num_clips": 10, "draws_per_clip": 3, "batch_size": 7, "seed": 0, **changes})


def test_an_epoch_sees_no_sample_twice() -> None:
    plan = _plan()
    assert plan.steps_per_epoch == 4
    for epoch in (0, 1):
        seen = np.concatenate([ids for _, ids in plan.batches(4 * epoch, 4 * epoch + 4)])
        assert len(set(seen.tolist())) == len(seen) == 28
        assert set(seen.tolist()) <= set(range(30))


def test_a_plan_is_the_same_from_any_start() -> None:
    whole = list(_plan().batches(0, 12))
    for start in (1, 3, 4, 7, 11):
        late = list(_plan().batches(start, 12))
        assert len(late) == 12 - start
        for (epoch, ids), (expected_epoch, expected) in zip(late, whole[start:], strict=True):
            assert epoch == expected_epoch
            assert np.array_equal(ids, expected)


def test_epochs_and_seeds_differ() -> None:
    first, second = (next(_plan().batches(step, step + 1))[1] for step in (0, 4))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next(_plan(seed=1).batches(0, 1))[1])


def test_a_batch_larger_than_an_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"global_batch_size=31 is larger than an epoch of 30 samples \(10 clips x 3"):
        _plan(batch_size=31)


def test_processes_share_every_micro_batch() -> None:
    plan = _plan(batch_size=8)
    whole = [ids.tolist() for _, ids in plan.batches(1, 4)]
    ranks = [list(RankBatches(plan, 1, 4, share=2, rank=rank, num_ranks=2)) for rank in (0, 1)]
    for step, ids in enumerate(whole):
        passes = [ranks[rank][2 * step + index] for index in (0, 1) for rank in (0, 1)]
        assert [sample for share in passes for _, sample in share] == ids


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PretrainSettings:
    return parse(PretrainSettings, tiny_config("pretrain", tmp_path_factory.mktemp("loader")))


@pytest.fixture(scope="module")
def clips(settings: PretrainSettings) -> Clips:
    manifest = open_manifest(settings.data)
    return Clips(manifest.split("train"), manifest.root)


def _dataset(clips: Clips, settings: PretrainSettings, relaxation: str) -> ViewDataset:
    return ViewDataset(clips, settings.views, relaxation=relaxation, seed=0, num_views=2)


def test_batches_are_the_same_whatever_the_number_of_workers(clips: Clips, settings: PretrainSettings) -> None:
    requests = [[(0, 3), (0, 14), (0, 1)], [(1, 3), (1, 0), (1, 5)]]
    found = []
    for num_workers in (0, 2):
        dataset = _dataset(clips, settings, "mild")
        found.append(list(batch_loader(dataset, requests, num_workers=num_workers, pin_memory=False)))
    for one, other in zip(*found, strict=True):
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor) else value == other.epoch


def test_shapes_types_and_order(clips: Clips, settings: PretrainSettings) -> None:
    dataset = _dataset(clips, settings, "mixed")
    (batch,) = batch_loader(dataset, [[(2, 3), (2, 14)]], num_workers=0, pin_memory=False)
    assert batch.video.shape == (2, 2, 4, 32, 32, 3)
    assert batch.video.dtype == torch.uint8
    assert batch.audio.shape == (2, 2, 8000)
    assert batch.audio.dtype == torch.float32
    assert batch.sample_ids.tolist() == [3, 14]
    assert batch.clip_ids.tolist() == [3, 14 % len(clips)]
    assert batch.labels.tolist() == [clips.labels[3], clips.labels[14 % len(clips)]]
    assert batch.epoch == 2


def test_without_relaxation_both_views_are_one_segment(clips: Clips, settings: PretrainSettings) -> None:
    sample = _dataset(clips, settings, "none")[0, 0]
    assert np.array_equal(*sample["video"])
    assert np.array_equal(*sample["audio"])
    other = _dataset(clips, settings, "extreme")[0, 0]
    assert not np.array_equal(*other["video"])


def test_evaluation_takes_evenly_spaced_segments(clips: Clips, settings: PretrainSettings) -> None:
    dataset = SegmentDataset(clips, settings.views)
    sample = dataset[1]
    assert sample["video"].shape[0] == sample["audio"].shape[0] == settings.views.evaluation_clips
    assert np.array_equal(sample["video"], dataset[1]["video"])


@pytest.mark.parametrize("length", [60, 90, 200])
def test_workers_start_whatever_the_length_of_tmpdir(
    clips: Clips, settings: PretrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A socket's path has at most 107 bytes, about 30 of which multiprocessing appends."""
    folder = tmp_path
    while len(str(folder)) < length:
        folder = folder / ("long" * 10)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    dataset = _dataset(clips, settings, "mild")
    (batch,) = batch_loader(dataset, [[(0, 3), (0, 1)]], num_workers=1, pin_memory=False)
    assert len(batch.labels) == 2
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("crisscross.utils.files.SHORT_TEMPDIRS", ("/nowhere",))
    if len(str(folder)) > 75:
        with pytest.raises(OSError, match=r"is too long for the sockets .* at most 75 characters"):
            batch_loader(dataset, [[(0, 3)]], num_workers=1, pin_memory=False)
