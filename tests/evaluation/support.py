"""Helpers of the evaluation tests: features with known classes, and settings of the protocols."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.evaluation import LinearSettings, RetrievalSettings, SvmSettings, complete
from crisscross.config.experiment import DownstreamSettings
from crisscross.data.manifest import CLIP_COLUMNS, Manifest
from crisscross.evaluation.feature_matrix import FeatureMatrix

Settings = SvmSettings | LinearSettings | RetrievalSettings


def rows_of(features: np.ndarray, labels: np.ndarray) -> FeatureMatrix:
    """Return a matrix of features (N, V, D), in memory."""
    return FeatureMatrix(
        (np.asarray(features, np.float32),), np.arange(len(features)), np.asarray(labels), features.shape[1]
    )


def clusters(
    num_clips: int, *, spread: float, seed: int = 0, num_classes: int = 4, dim: int = 16, num_segments: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, V, D) around one center per class, the same for all seeds, and labels (N,)."""
    labels = np.arange(num_clips) % num_classes
    centers = np.random.default_rng(99).normal(size=(num_classes, dim))
    noise = np.random.default_rng(seed).normal(size=(num_clips, num_segments, dim))
    return (centers[labels][:, None] + spread * noise).astype(np.float32), labels


def protocol(name: str, **changes: Any) -> Settings:
    """Return a protocol's settings from its config file, with changes."""
    config = copy.deepcopy(_config(name))
    config["downstream"] |= changes
    return parse(DownstreamSettings, config).downstream


@functools.cache
def _config(name: str) -> dict[str, Any]:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("downstream", overrides=[f"downstream={name}"]), resolve=True)
    return complete(config, pretrained_on=None)


def manifest_of(clips: list[dict[str, Any]]) -> Manifest:
    """Return a manifest of clips without files, each with a path, a label, splits and both streams of 3 s."""
    classes = sorted({clip["label"] for clip in clips})
    there = {"video_start_s": 0.0, "video_end_s": 3.0, "audio_start_s": 0.0, "audio_end_s": 3.0}
    rows = [
        {"clip_id": index, "label_id": classes.index(clip["label"]), **there, **clip}
        for index, clip in enumerate(clips)
    ]
    frame = pd.DataFrame(rows).reindex(columns=CLIP_COLUMNS)
    return Manifest(None, None, frame, pd.DataFrame(), classes, "")
