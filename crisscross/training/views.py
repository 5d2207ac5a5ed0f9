"""From a decoded batch to augmented views on the device: the seam between the loader and the networks."""

from __future__ import annotations

import numpy as np
import torch

from crisscross.data.loader import Batch
from crisscross.methods.base import Views
from crisscross.randomness import sample_keys
from crisscross.transforms.audio import augment_audio, evaluate_audio
from crisscross.transforms.settings import AudioTransformSettings, VideoTransformSettings
from crisscross.transforms.video import augment_video, evaluate_video


def augmented_views(
    batch: Batch,
    *,
    seed: int,
    device: torch.device,
    video: VideoTransformSettings,
    audio: AudioTransformSettings,
) -> Views:
    """Augment every view of every sample by draws keyed by (seed, modality and view, epoch, sample).

    Args:
        batch: decoded samples, V views each.
        seed: the experiment's seed.
        device: where to compute.
        video: what is done to frames.
        audio: what is done to waveforms and spectrograms.

    Returns:
        Views of shapes (V, B, 3, T, H, W) and (V, B, 1, F, T), on the device.
    """
    size, num_views = batch.video.shape[:2]
    ids = batch.sample_ids.numpy()

    def keys(modality: str) -> np.ndarray:
        views = [sample_keys(seed, f"{modality}/view{view}", batch.epoch, ids) for view in range(num_views)]
        return np.concatenate(views)

    # To the device first: the batch is in pinned memory, a rearranged copy of it would not be.
    frames = batch.video.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
    waves = batch.audio.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
    aspect = batch.aspect.repeat(num_views)  # boxes are drawn on the host
    return Views(
        video=augment_video(frames, aspect, keys("video"), video).unflatten(0, (num_views, size)),
        audio=augment_audio(waves, keys("audio"), audio).unflatten(0, (num_views, size)),
        clip_ids=batch.clip_ids.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        epoch=batch.epoch,
    )


def evaluation_views(
    batch: Batch, *, device: torch.device, video: VideoTransformSettings, audio: AudioTransformSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre-crop the frames and take plain spectrograms of all segments of a batch of videos.

    Returns:
        (B * V, 3, T, H, W) and (B * V, 1, F, T); the V segments of a video follow one another.
    """
    num_segments = batch.video.shape[1]
    frames = batch.video.flatten(0, 1).to(device, non_blocking=True)
    waves = batch.audio.flatten(0, 1).to(device, non_blocking=True)
    aspect = batch.aspect.repeat_interleave(num_segments)
    return evaluate_video(frames, aspect, video), evaluate_audio(waves, audio)
