"""Features of the clips of all folds, extracted once per clip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from crisscross.config.experiment import DownstreamSettings
from crisscross.data.decoded_cache import open_cache
from crisscross.data.loader import Clips, SegmentDataset
from crisscross.data.manifest import Manifest
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.folds import Fold
from crisscross.run.run_dir import RunDirectory
from crisscross.training.features import Extraction, FeatureStore, Network, extract, reporter
from crisscross.utils.rng import derive_key


class FoldFeatures:
    """Features of an evaluation's folds, stored in the run directory."""

    def __init__(
        self,
        run: RunDirectory,
        settings: DownstreamSettings,
        manifest: Manifest,
        folds: list[Fold],
        networks: Mapping[str, Network],
        device: torch.device,
    ) -> None:
        """Extract the features that the run directory lacks.

        Args:
            run: the run directory, which stores the features.
            settings: the settings of the evaluation.
            manifest: the dataset.
            folds: the folds to evaluate.
            networks: by stream (``v``, ``a``), the function from input to features; on the device, in eval mode.
            device: where to compute.

        Raises:
            DecodeError: if a clip can no longer be decoded.
            Preempted: if a signal asked the job to stop.
        """
        self._run, self._settings, self._networks, self._device = run, settings, networks, device
        self._manifest = manifest
        self._cache = open_cache(manifest, settings.data, settings.views)
        self._draws = settings.frozen.features.train_draws
        train = np.unique(np.concatenate([fold.train["clip_id"] for fold in folds]))
        test = np.unique(np.concatenate([fold.test["clip_id"] for fold in folds]))
        if self._draws:
            self._train = self._extract("train", train, draws=self._draws)
            self._test = self._extract("test", test, draws=0)
        else:
            self._train = self._test = self._extract("clips", np.union1d(train, test), draws=0)

    def of(self, fold: Fold, modality: str) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Return the training and the test matrix of a fold."""
        return _rows(*self._train, fold.train, modality), _rows(*self._test, fold.test, modality)

    def _extract(self, name: str, clip_ids: np.ndarray, *, draws: int) -> tuple[FeatureStore, np.ndarray]:
        settings, manifest = self._settings, self._manifest
        frame = manifest.clips[manifest.clips["clip_id"].isin(clip_ids)].sort_values("clip_id")
        segments = draws or settings.views.evaluation_clips
        store = FeatureStore(self._run.path / "features" / name, num_clips=len(frame), num_segments=segments)
        seed = derive_key(settings.seed, "segments") % 2**31
        extraction = Extraction(
            networks=self._networks,
            dataset=SegmentDataset(
                Clips(frame.reset_index(drop=True), manifest.root, self._cache),
                settings.views,
                modalities=settings.downstream.streams,
                num_draws=draws,
                seed=seed,
            ),
            views=settings.views,
            execution=settings.execution,
            device=self._device,
            augmentation_seed=seed if draws else None,
        )
        report = reporter(self._run, phase=f"features of {name}", num_clips=len(frame))
        extract(store, extraction, report=report)
        return store, clip_ids


def _rows(store: FeatureStore, clip_ids: np.ndarray, frame: pd.DataFrame, modality: str) -> FeatureMatrix:
    """Return the matrix of a frame's clips; ``clip_ids``, the store's clips, ascend."""
    return FeatureMatrix.of(
        tuple(store.array(stream) for stream in ("v", "a") if stream in modality),
        np.searchsorted(clip_ids, frame["clip_id"]),
        frame["label_id"].to_numpy(),
    )
