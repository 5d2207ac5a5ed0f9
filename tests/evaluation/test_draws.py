"""Segments of clips: random and augmented, or evenly spaced; of one modality or both."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings
from crisscross.data import loader
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.loader import Clips, SegmentDataset, decode_segments
from crisscross.data.manifest import Manifest
from crisscross.data.relaxation import even_starts
from crisscross.training import features
from crisscross.training.features import Extraction, FeatureStore, extract
from crisscross.transforms.audio import eval_transform_audio
from crisscross.transforms.video import eval_transform_video
from tests.support import tiny_config

WARPED = "views.audio.transform.time_warp_frames=4"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DownstreamSettings:
    return parse(DownstreamSettings, tiny_config("downstream", tmp_path_factory.mktemp("draws"), WARPED))


@pytest.fixture(scope="module")
def manifest(settings: DownstreamSettings) -> Manifest:
    return open_manifest(settings.data)


def _inputs(
    settings: DownstreamSettings,
    frame: pd.DataFrame,
    root: Path,
    folder: Path,
    *,
    draws: int,
    seed: int = 0,
    modalities: str = "av",
    workers: int = 0,
) -> dict[str, np.ndarray]:
    """Return the inputs of the networks, (N, V, D) by modality."""
    store = FeatureStore(folder, num_clips=len(frame), num_segments=draws or settings.views.evaluation_clips)
    clips = Clips(frame.reset_index(drop=True), root)
    extraction = Extraction(
        networks=dict.fromkeys(modalities, lambda x: x.flatten(1)),
        dataset=SegmentDataset(clips, settings.views, modalities=modalities, num_draws=draws, seed=seed),
        views=settings.views,
        execution=settings.execution.model_copy(update={"num_workers": workers}),
        device=torch.device("cpu"),
        augmentation_seed=seed if draws else None,
    )
    extract(store, extraction, report=lambda done, rate: None)
    return {modality: np.array(store.array(modality)) for modality in modalities}


@pytest.fixture(scope="module")
def drawn(settings: DownstreamSettings, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _inputs(settings, manifest.clips, manifest.root, tmp_path_factory.mktemp("drawn"), draws=3)


@pytest.mark.parametrize(("segments_a_batch", "workers", "every"), [(3, 0, 1), (15, 2, 1), (160, 0, 2), (6, 0, 5)])
def test_a_draw_depends_on_its_clip_alone(
    settings: DownstreamSettings,
    manifest: Manifest,
    drawn: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    segments_a_batch: int,
    workers: int,
    every: int,
) -> None:
    monkeypatch.setattr(features, "SEGMENTS_PER_BATCH", segments_a_batch)
    some = manifest.clips.iloc[::every]
    found = _inputs(settings, some, manifest.root, tmp_path, draws=3, workers=workers)
    for modality, rows in drawn.items():
        assert np.array_equal(found[modality], rows[::every])


def test_more_draws_change_none(settings: DownstreamSettings, manifest: Manifest, drawn: Any, tmp_path: Path) -> None:
    more = _inputs(settings, manifest.clips, manifest.root, tmp_path / "more", draws=5)
    for modality, rows in drawn.items():
        assert np.array_equal(more[modality][:, :3], rows)


def test_seeds_clips_and_draws_differ(
    settings: DownstreamSettings, manifest: Manifest, drawn: Any, tmp_path: Path
) -> None:
    other = _inputs(settings, manifest.clips, manifest.root, tmp_path, draws=3, seed=1)
    for modality, rows in drawn.items():
        assert not any(np.allclose(one, two) for one, two in zip(rows, other[modality], strict=True))
        assert len(np.unique(rows.reshape(-1, rows.shape[2]), axis=0)) == rows.shape[0] * rows.shape[1]


def test_evenly_spaced_segments_are_plain(settings: DownstreamSettings, manifest: Manifest, tmp_path: Path) -> None:
    some = manifest.clips.iloc[:3]
    found = _inputs(settings, some, manifest.root, tmp_path, draws=0)
    views, num = settings.views, settings.views.evaluation_clips
    video, audio = (
        VideoTransformSettings(**views.video.transform),
        AudioTransformSettings(**views.audio.transform),
    )
    for place, clip in enumerate(some.itertuples()):
        frames, waves = decode_segments(
            manifest.root / clip.path,
            views,
            video_starts_s=even_starts(clip.video_start_s, clip.video_end_s, seconds=views.video.seconds, num=num),
            audio_starts_s=even_starts(clip.audio_start_s, clip.audio_end_s, seconds=views.audio.seconds, num=num),
        )
        aspect = torch.full((num,), clip.width / clip.height)
        expected = {
            "v": eval_transform_video(torch.from_numpy(frames), aspect, video),
            "a": eval_transform_audio(torch.from_numpy(waves), audio),
        }
        for modality, values in expected.items():
            assert np.allclose(found[modality][place], values.flatten(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("draws", [0, 2])
@pytest.mark.parametrize("modality", ["v", "a"])
def test_one_modality_decodes_only_that_stream(
    settings: DownstreamSettings,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modality: str,
    draws: int,
) -> None:
    starts = []
    original = loader.decode_windows

    def recorded(path: Path, *, video_starts_s: Any, audio_starts_s: Any, **more: Any) -> Any:
        starts.append((len(video_starts_s), len(audio_starts_s)))
        return original(path, video_starts_s=video_starts_s, audio_starts_s=audio_starts_s, **more)

    monkeypatch.setattr(loader, "decode_windows", recorded)
    found = _inputs(settings, manifest.clips[:4], manifest.root, tmp_path / "1", draws=draws, modalities=modality)
    assert starts == [(2, 0) if modality == "v" else (0, 2)] * 4
    if not draws:
        both = _inputs(settings, manifest.clips[:4], manifest.root, tmp_path / "2", draws=0)
        assert np.array_equal(found[modality], both[modality])


@pytest.mark.parametrize("draws", [0, 2])
def test_recordings_without_video_are_enough(settings: DownstreamSettings, tmp_path: Path, draws: int) -> None:
    for index in range(4):
        path = tmp_path / "clips" / f"class{index % 2}" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(22050)
            file.writeframes(np.random.default_rng(index).integers(-9999, 9999, 44100).astype("<i2").tobytes())
    wavs = {"name": "wavs", "kind": "folder", "root": str(tmp_path / "clips"), "require": ["audio"], "toy": {}}
    manifests = {"manifest_root": str(tmp_path / "manifests")}
    data = prepare({**settings.data.model_dump(), **wavs, **manifests}, progress=False)
    sounds = open_manifest(settings.data.model_copy(update=data))
    assert sounds.clips["video_start_s"].isna().all()
    found = _inputs(settings, sounds.clips, sounds.root, tmp_path / "features", draws=draws, modalities="a")
    assert found["a"].shape[:2] == (4, 2)
    assert np.isfinite(found["a"]).all()
