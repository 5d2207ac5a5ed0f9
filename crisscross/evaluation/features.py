"""The one feature extractor: frozen backbones over evenly spaced segments of every clip."""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crisscross.data.decode import DecodeError
from crisscross.data.loader import Clips, EvaluationDataset, batch_loader
from crisscross.files import write_atomically
from crisscross.models.backbones import Backbones
from crisscross.settings import ExecutionSettings, ViewSettings
from crisscross.training.interruption import INTERRUPTION
from crisscross.training.views import evaluation_views
from crisscross.transforms.settings import AudioTransformSettings, VideoTransformSettings

logger = logging.getLogger(__name__)

VIDEOS_PER_BATCH = 16


class Interrupted(Exception):
    """Raised between two batches when a signal asked the job to leave."""


@dataclass(frozen=True)
class Features:
    """Pooled features of a split.

    Attributes:
        video: (N, V, D) float32, V segments a clip.
        audio: (N, V, D) float32.
        labels: (N,) int64.
    """

    video: np.ndarray
    audio: np.ndarray
    labels: np.ndarray

    def of(self, modality: str) -> np.ndarray:
        """Return the features of ``v``, ``a`` or ``av`` (both, one after the other): (N, V, D)."""
        if modality == "av":
            return np.concatenate([self.video, self.audio], axis=-1)
        return {"v": self.video, "a": self.audio}[modality]


def cached_features(path: Path, extract: Callable[[], Features]) -> Features:
    """Return the features kept at ``path``, extracting them when there are none.

    The file lies in the run directory, whose identity covers weights, clips and settings: it cannot be stale.
    """
    if path.exists():
        try:
            with np.load(path) as stored:
                return Features(**{name: stored[name] for name in ("video", "audio", "labels")})
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): extracting the features again", path, error)
    features = extract()
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, **vars(features)))
    return features


@torch.inference_mode()
def extract_features(
    backbones: Backbones,
    clips: Clips,
    views: ViewSettings,
    *,
    execution: ExecutionSettings,
    device: torch.device,
    report: Callable[[int, float], None],
) -> Features:
    """Run frozen backbones, in eval mode, over every clip of a split.

    Args:
        backbones: on the device.
        clips: the split.
        views: segment lengths, transforms and the number of segments a clip.
        execution: loader processes.
        device: where to compute.
        report: called after every batch with the clips done and clips a second.

    Raises:
        DecodeError: when a clip cannot be read any more, naming it.
        Interrupted: when a signal asked the job to leave.
    """
    backbones.eval()
    video_transform = VideoTransformSettings(**views.video.transform)
    audio_transform = AudioTransformSettings(**views.audio.transform)
    requests = [
        list(range(first, min(first + VIDEOS_PER_BATCH, len(clips))))
        for first in range(0, len(clips), VIDEOS_PER_BATCH)
    ]
    loader = batch_loader(
        EvaluationDataset(clips, views),
        requests,
        num_workers=execution.num_workers,
        pin_memory=device.type == "cuda",
    )
    video, audio, done, started = [], [], 0, time.monotonic()
    for batch in loader:
        if isinstance(batch, DecodeError):
            raise batch
        if INTERRUPTION.requested:
            raise Interrupted(INTERRUPTION.signal_name)
        frames, spectrograms = evaluation_views(batch, device=device, video=video_transform, audio=audio_transform)
        shape = (batch.video.shape[0], views.evaluation_clips, -1)
        video.append(backbones.video_backbone(frames).float().cpu().numpy().reshape(shape))
        audio.append(backbones.audio_backbone(spectrograms).float().cpu().numpy().reshape(shape))
        done += len(batch.labels)
        report(done, done / (time.monotonic() - started))
    return Features(np.concatenate(video), np.concatenate(audio), clips.labels.copy())
