"""What an evaluation saw, looked at again: its features, its networks, its clips. Nothing is written to its folder."""

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
class Shown:
    """The middle segment of some clips, as the networks get it and as people look at it.

    Attributes:
        video: (N, 3, T, H, W) normalised, None where it was not asked for.
        frames: (N, T, H, W, 3) float32 in [0, 1]: the same pictures.
        audio: (N, 1, F, T) normalised log-mel spectrograms, None where they were not asked for.
    """

    video: Tensor | None
    frames: np.ndarray | None
    audio: Tensor | None


class EvaluatedRun:
    """A finished evaluation of frozen backbones and the clips of the first of its folds."""

    def __init__(self, run: RunDirectory) -> None:
        """Open it.

        Args:
            run: the evaluation's run directory.

        Raises:
            FileNotFoundError: its clips are gone.
            ValueError: its clips have changed, or its protocol has no frozen features.
        """
        self.run = run
        self.settings = parse(DownstreamSettings, run.config)
        if self.settings.downstream.name == "finetune":
            raise ValueError(f"{run.label} is a fine-tuning, which has no frozen features: give another evaluation")
        self.manifest: Manifest = open_manifest(self.settings.data)
        self._folds = folds_of(self.manifest, self.settings.data)

    @property
    def fold(self) -> Fold:
        """The first fold, or the only one without a name."""
        return self._folds[0]

    def features(self, modality: str) -> np.ndarray:
        """Return the features of the test clips, (N, V, D) float32, in the order of ``fold.test``.

        They are those in the run directory; where they are gone they are computed anew, and not kept.

        Args:
            modality: ``v``, ``a`` or ``av``.

        Raises:
            DecodeError, ValueError, FileNotFoundError: they are gone, and so is what they could be made from.
        """
        drawn = self.settings.frozen.features.train_draws > 0  # then test clips have a store of their own
        kept = [frame["clip_id"] for fold in self._folds for frame in ([] if drawn else [fold.train]) + [fold.test]]
        ids = np.unique(np.concatenate(kept))
        folder = self.run.path / "features" / ("test" if drawn else "clips")
        store = FeatureStore(folder, len(ids), self.settings.views.evaluation_clips)
        if store.is_complete:
            return self._of_test(store, ids, modality)
        logger.info("%s: its features are gone and are computed again", self.run.label)
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
        """Return the features of the test clips from a store that has those of the clips ``ids``, ascending."""
        places = np.searchsorted(ids, self.fold.test["clip_id"])
        parts = [np.array(store.array(stream)[places]) for stream in ("v", "a") if stream in modality]
        return np.concatenate(parts, axis=-1)

    def networks(self) -> dict[str, Network]:
        """Return the frozen networks by stream, ``v`` and ``a`` as far as the protocol has them, on the CPU.

        Raises:
            FileNotFoundError, ValueError: their weights are gone or unfit, in one line.
        """
        backbones = backbones_of(self.run, self.settings).eval().requires_grad_(False)
        return feature_extractors(backbones, self.settings.frozen)

    def rows(self, paths: Sequence[str]) -> pd.DataFrame:
        """Return the rows of the manifest of some clips, in that order.

        Raises:
            ValueError: a path is none of the manifest's.
        """
        known = self.manifest.clips.set_index("path", drop=False)
        for path in paths:
            if path not in known.index:
                raise ValueError(f"{path} is no clip of {self.settings.data.name}: give paths as in predictions.csv")
        return known.loc[list(paths)].reset_index(drop=True)

    def middle(self, rows: pd.DataFrame, stream: str) -> Shown:
        """Return the middle segments of some clips.

        Args:
            rows: of the manifest.
            stream: ``v`` or ``a``.

        Raises:
            DecodeError: a clip cannot be read, naming it.
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
        return Shown(video, frames, audio)
