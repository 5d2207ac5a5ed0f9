"""The feature store, damaged files included, and extractions that are stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.loader import Batch, Clips, SegmentDataset
from crisscross.data.media.decode import DecodeError
from crisscross.training import features
from crisscross.training.augment import segment_views
from crisscross.training.features import Extraction, FeatureStore, extract
from crisscross.utils.signals import SHUTDOWN, SIGNALS, Preempted
from tests.support import tiny_config

NUM_CLIPS, NUM_SEGMENTS = 12, 2
WHOLE = {
    "v": np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32),
    "a": np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32),
}


def _store(folder: Path) -> FeatureStore:
    return FeatureStore(folder / "features", num_clips=6, num_segments=2)


def _write(store: FeatureStore, *pieces: tuple[int, int]) -> None:
    with store.writing() as append:
        for first, last in pieces:
            append({modality: array[first:last] for modality, array in WHOLE.items()})


def _write_and_fail(store: FeatureStore) -> None:
    with store.writing() as append:
        append({modality: array[2:5] for modality, array in WHOLE.items()})
        append({"b": WHOLE["b"]})


def _assert_whole(store: FeatureStore) -> None:
    assert store.is_complete
    for modality, array in WHOLE.items():
        assert np.array_equal(store.array(modality), array)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert _store(tmp_path).done == 0
    _write(_store(tmp_path), (0, 2), (2, 3))
    assert _store(tmp_path).done == 3
    assert not _store(tmp_path).is_complete
    _write(_store(tmp_path), (3, 6))
    _assert_whole(_store(tmp_path))
    assert isinstance(_store(tmp_path).array("v"), np.memmap)


def test_rows_that_were_not_finished_do_not_count(tmp_path: Path) -> None:
    _write(_store(tmp_path), (0, 2))
    with pytest.raises(KeyError, match="b"):
        _write_and_fail(_store(tmp_path))
    assert _store(tmp_path).done == 2
    _write(_store(tmp_path), (2, 6))
    _assert_whole(_store(tmp_path))


def test_half_a_row_behind_those_that_count_is_cut_off(tmp_path: Path) -> None:
    _write(_store(tmp_path), (0, 4))
    for modality in WHOLE:
        with (tmp_path / "features" / f"{modality}.f32").open("ab") as file:
            file.write(b"torn!")
    assert _store(tmp_path).done == 4
    _write(_store(tmp_path), (4, 6))
    _assert_whole(_store(tmp_path))


def test_without_its_count_everything_is_written_again(tmp_path: Path) -> None:
    _write(_store(tmp_path), (0, 4))
    (tmp_path / "features" / "done.json").unlink()
    assert _store(tmp_path).done == 0
    _write(_store(tmp_path), (0, 6))
    _assert_whole(_store(tmp_path))


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_file_that_lost_rows_is_noticed(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    _write(_store(tmp_path), (0, 6))
    file = tmp_path / "features" / "a.f32"
    file.unlink() if damage == "gone" else os.truncate(file, file.stat().st_size - 1)
    assert _store(tmp_path).done == 0
    assert f"{file} is shorter than it should be: extracting the features again" in caplog.text
    _write(_store(tmp_path), (0, 6))
    _assert_whole(_store(tmp_path))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DownstreamSettings:
    config = tiny_config("downstream", tmp_path_factory.mktemp("features"), "execution.checkpoint_minutes=1e-9")
    return parse(DownstreamSettings, config)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SEGMENTS_PER_BATCH", 3 * NUM_SEGMENTS)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the ids of the clips that are decoded."""
    seen: list[int] = []

    def views(batch: Batch, **more: Any) -> Any:
        seen.extend(batch.sample_ids.tolist())
        return segment_views(batch, **more)

    monkeypatch.setattr(features, "segment_views", views)
    return seen


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    SHUTDOWN.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    SHUTDOWN.signal_name = None


def _extract(settings: DownstreamSettings, folder: Path, network: Any, *, workers: int = 0, **execution: Any) -> Any:
    """Return the extracted video and audio features of the training clips."""
    manifest = open_manifest(settings.data)
    clips = Clips(manifest.split("train"), manifest.root)
    store = FeatureStore(folder / "features", num_clips=len(clips), num_segments=NUM_SEGMENTS)
    extraction = Extraction(
        networks={"v": network, "a": lambda x: x.flatten(1)},
        dataset=SegmentDataset(clips, settings.views),
        views=settings.views,
        execution=settings.execution.model_copy(update={"num_workers": workers, **execution}),
        device=torch.device("cpu"),
    )
    reported: list[int] = []
    extract(store, extraction, report=lambda done, rate: reported.append(done))
    return store.array("v"), store.array("a"), reported


@pytest.fixture(scope="module")
def undisturbed(settings: DownstreamSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, ...]:
    return _extract(settings, tmp_path_factory.mktemp("undisturbed"), _plain)[:2]


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def _assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_signal_an_extraction_goes_on_where_it_stopped(
    settings: DownstreamSettings, undisturbed: Any, decoded: list[int], tmp_path: Path, workers: int
) -> None:
    calls = 0

    def network(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return x.flatten(1)

    for done in (6, 9):
        with pytest.raises(Preempted, match="SIGTERM"):
            _extract(settings, tmp_path, network, workers=workers, checkpoint_minutes=10.0)
        assert FeatureStore(tmp_path / "features", NUM_CLIPS, NUM_SEGMENTS).done == done
        SHUTDOWN.signal_name = None
    video, audio, reported = _extract(settings, tmp_path, network, workers=workers)
    assert reported == [12]
    assert len(decoded) == len(set(decoded)) == NUM_CLIPS  # each once
    _assert_same((video, audio), undisturbed)


@pytest.mark.usefixtures("_signals")
def test_a_signal_in_the_last_batch_is_not_too_early(settings: DownstreamSettings, tmp_path: Path) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        if FeatureStore(tmp_path / "features", NUM_CLIPS, NUM_SEGMENTS).done == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return x.flatten(1)

    _extract(settings, tmp_path, network)
    assert SHUTDOWN.requested


@pytest.mark.parametrize("minutes", [1e-9, 10.0])
def test_a_crash_costs_what_was_not_kept_yet(
    settings: DownstreamSettings, undisturbed: Any, decoded: list[int], tmp_path: Path, minutes: float
) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        if len(decoded) == 9:
            raise MemoryError
        return x.flatten(1)

    with pytest.raises(MemoryError):
        _extract(settings, tmp_path, network, checkpoint_minutes=minutes)
    assert FeatureStore(tmp_path / "features", NUM_CLIPS, NUM_SEGMENTS).done == (6 if minutes < 1 else 0)
    found = _extract(settings, tmp_path, _plain)
    _assert_same(found[:2], undisturbed)
    decoded.clear()
    assert _extract(settings, tmp_path, _plain)[2] == []  # all features are there: nothing is decoded again
    assert decoded == []


@pytest.mark.parametrize(("workers", "clips_a_batch"), [(2, 3), (0, 1), (0, 5), (2, 100)])
def test_features_are_the_same_bits_with_any_workers_and_batches(
    settings: DownstreamSettings,
    undisturbed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    clips_a_batch: int,
) -> None:
    monkeypatch.setattr(features, "SEGMENTS_PER_BATCH", clips_a_batch * NUM_SEGMENTS)
    video, audio, reported = _extract(settings, tmp_path, _plain, workers=workers)
    assert reported == [*range(clips_a_batch, NUM_CLIPS, clips_a_batch), NUM_CLIPS]
    _assert_same((video, audio), undisturbed)


def test_a_clip_that_cannot_be_read_any_more_is_named(settings: DownstreamSettings, tmp_path: Path) -> None:
    manifest = open_manifest(settings.data)
    frame = manifest.split("train").copy()
    frame.loc[7, "path"] = "not-there.mp4"
    clips = Clips(frame, manifest.root)
    store = FeatureStore(tmp_path / "features", num_clips=len(clips), num_segments=NUM_SEGMENTS)
    extraction = Extraction(
        networks={"v": _plain},
        dataset=SegmentDataset(clips, settings.views),
        views=settings.views,
        execution=settings.execution,
        device=torch.device("cpu"),
    )
    with pytest.raises(DecodeError, match=r"not-there\.mp4"):
        extract(store, extraction, report=lambda done, rate: None)
    assert store.done == 6  # the batches before it
