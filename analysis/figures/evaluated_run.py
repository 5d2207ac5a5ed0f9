"""Features, networks and clips of a finished evaluation, for figures.

Its run directory is only read.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.loader import Clips, SegmentDataset, collate
from crisscross.data.manifest import Manifest
from crisscross.data.media.decode import DecodeError
from crisscross.evaluation.backbones import backbones_of
from crisscross.evaluation.feature_layers import feature_extractors
from crisscross.evaluation.folds import Fold, folds_of
from crisscross.run.run_dir import RunDirectory
from crisscross.training.augment import segment_views
from crisscross.training.features import Extraction, FeatureStore, Network, extract

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MiddleSegments:
    """The middle segment of some clips, as network inputs and as images.

    Attributes:
        video: (N, 3, T, H, W) normalized; None for the audio stream.
        frames: (N, T, H, W, 3) float32 in [0, 1], the same frames; None for the audio stream.
        audio: (N, 1, F, T) normalized log-mel spectrograms; None for the video stream.
    """

    video: Tensor | None
    frames: np.ndarray | None
    audio: Tensor | None


class EvaluatedRun:
    """A finished evaluation of frozen backbones, and its first fold's test clips."""

    def __init__(self, run: RunDirectory) -> None:
        """Read the settings and the manifest.

        Args:
            run: the evaluation's run directory.

        Raises:
            FileNotFoundError: if its clips were deleted.
            ValueError: if its clips changed, or its protocol has no frozen features.
        """
        self.run = run
        self.settings = parse(DownstreamSettings, run.config)
        if self.settings.downstream.name == "finetune":
            raise ValueError(f"{run.label} is a fine-tuning, which has no frozen features: give another evaluation")
        self.manifest: Manifest = open_manifest(self.settings.data)
        self._folds = folds_of(self.manifest, self.settings.data)

    @property
    def fold(self) -> Fold:
        """The first fold; without folds, the only split."""
        return self._folds[0]

    def features(self, modality: str) -> np.ndarray:
        """Return the test clips' features, (N, V, D) float32, ordered as ``fold.test``.

        They come from the run directory. If they were deleted, this computes them again and does not store them.

        Args:
            modality: ``v``, ``a`` or ``av``.

        Raises:
            DecodeError, ValueError, FileNotFoundError: if the features were deleted and cannot be computed again.
        """
        drawn = self.settings.frozen.features.train_draws > 0  # then test clips have a separate store
        kept = [frame["clip_id"] for fold in self._folds for frame in ([] if drawn else [fold.train]) + [fold.test]]
        ids = np.unique(np.concatenate(kept))
        folder = self.run.path / "features" / ("test" if drawn else "clips")
        store = FeatureStore(folder, len(ids), self.settings.views.evaluation_clips)
        if store.is_complete:
            return self._of_test(store, ids, modality)
        logger.info("%s: its features were deleted and are computed again", self.run.label)
        ids = np.sort(self.fold.test["clip_id"].to_numpy())
        with tempfile.TemporaryDirectory() as temporary:
            store = FeatureStore(Path(temporary), len(ids), self.settings.views.evaluation_clips)
            extract(store, self._extraction(ids, modality), report=lambda done, rate: None)
            return self._of_test(store, ids, modality)

    def _extraction(self, ids: np.ndarray, modality: str) -> Extraction:
        frame = self.manifest.clips[self.manifest.clips["clip_id"].isin(ids)].sort_values("clip_id")
        clips = Clips(frame.reset_index(drop=True), self.manifest.root)
        views = self.settings.views
        return Extraction(
            networks={stream: network for stream, network in self.networks().items() if stream in modality},
            dataset=SegmentDataset(clips, views, modalities=modality),
            views=views,
            execution=self.settings.execution,
            device=torch.device("cpu"),
        )

    def _of_test(self, store: FeatureStore, ids: np.ndarray, modality: str) -> np.ndarray:
        """Return the test clips' features from a store of ``ids`` (ascending)."""
        indices = np.searchsorted(ids, self.fold.test["clip_id"])
        parts = [np.array(store.array(stream)[indices]) for stream in ("v", "a") if stream in modality]
        return np.concatenate(parts, axis=-1)

    def networks(self) -> dict[str, Network]:
        """Return the frozen networks by stream (``v``, ``a``), on the CPU.

        Raises:
            FileNotFoundError, ValueError: if their weights are missing or do not fit.
        """
        backbones = backbones_of(self.run, self.settings).eval().requires_grad_(False)
        return feature_extractors(backbones, self.settings.frozen)

    def rows(self, paths: Sequence[str]) -> pd.DataFrame:
        """Return the manifest's rows of some clips, in the given order.

        Args:
            paths: as in the manifest.

        Raises:
            ValueError: if the manifest has no such path.
        """
        known = self.manifest.clips.set_index("path", drop=False)
        for path in paths:
            if path not in known.index:
                raise ValueError(f"{path} is no clip of {self.settings.data.name}: give paths as in predictions.csv")
        return known.loc[list(paths)].reset_index(drop=True)

    def middle(self, rows: pd.DataFrame, stream: str) -> MiddleSegments:
        """Return the middle segments of some clips.

        Args:
            rows: of the manifest.
            stream: ``v`` or ``a``.

        Raises:
            DecodeError: if a clip cannot be decoded.
        """
        views = self.settings.views.model_copy(update={"evaluation_clips": 1})
        dataset = SegmentDataset(Clips(rows.reset_index(drop=True), self.manifest.root), views, modalities=stream)
        batch = collate([dataset[index] for index in range(len(dataset))])
        if isinstance(batch, DecodeError):
            raise batch
        settings = VideoTransformSettings(**views.video.transform)
        video, audio = segment_views(
            batch,
            device=torch.device("cpu"),
            video=settings,
            audio=AudioTransformSettings(**views.audio.transform),
        )
        frames = None
        if video is not None:
            mean, std = (np.array(values, np.float32) for values in (settings.mean, settings.std))
            frames = np.clip(video.permute(0, 2, 3, 4, 1).numpy() * std + mean, 0, 1)
        return MiddleSegments(video, frames, audio)
