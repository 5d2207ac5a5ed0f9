"""Augment decoded batches on the device: the step between the loader and the networks."""

from __future__ import annotations

import numpy as np
import torch

from crisscross.config.views import AudioTransformSettings, VideoTransformSettings
from crisscross.data.loader import Batch
from crisscross.methods.base import Views
from crisscross.transforms.audio import augment_audio, eval_transform_audio
from crisscross.transforms.video import augment_video, eval_transform_video
from crisscross.utils.rng import sample_keys


def augmented_views(
    batch: Batch,
    *,
    seed: int,
    device: torch.device,
    video: VideoTransformSettings,
    audio: AudioTransformSettings,
    draw_seed: int = 0,
) -> Views:
    """Augment every view of every sample.

    Random draws are keyed by (seed, modality and view, epoch, sample).

    Args:
        batch: decoded samples, V views each.
        seed: the experiment's seed.
        device: device of the computation and the result.
        video: transforms of frames.
        audio: transforms of waveforms and spectrograms.
        draw_seed: seed of the network's own draws, ``Views.seed``.

    Returns:
        Views of shapes (V, B, 3, T, H, W) and (V, B, 1, F, T), on the device; None for streams that are not decoded.
    """
    num_views, ids = _num_views(batch), batch.sample_ids.numpy()

    def keys(modality: str) -> np.ndarray:
        views = [sample_keys(seed, f"{modality}/view{view}", batch.epoch, ids) for view in range(num_views)]
        return np.concatenate(views)

    # To the device first: the batch is in pinned memory, but a rearranged copy of it is not.
    frames = waves = None
    if batch.video is not None:
        frames = batch.video.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
        aspect = batch.aspect.repeat(num_views)  # boxes are drawn on the CPU
        frames = torch.unflatten(augment_video(frames, aspect, keys("video"), video), 0, (num_views, len(ids)))
    if batch.audio is not None:
        waves = batch.audio.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
        waves = torch.unflatten(augment_audio(waves, keys("audio"), audio), 0, (num_views, len(ids)))
    return Views(
        video=frames,
        audio=waves,
        clip_ids=batch.clip_ids.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
        epoch=batch.epoch,
        seed=draw_seed,
    )


def segment_views(
    batch: Batch,
    *,
    device: torch.device,
    video: VideoTransformSettings,
    audio: AudioTransformSettings,
    seed: int | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Transform all segments of a batch of clips for frozen networks.

    Args:
        batch: decoded clips, V segments each.
        device: device of the computation and the result.
        video: transforms of frames.
        audio: transforms of waveforms and spectrograms.
        seed: seed of augmentations, keyed by (clip, segment); None = center crops and plain spectrograms.

    Returns:
        (B * V, 3, T, H, W) and (B * V, 1, F, T), the V segments of a clip consecutively; None for streams that are not
        decoded.
    """
    num_segments, ids = _num_views(batch), batch.sample_ids.numpy()

    def keys(modality: str, seed: int) -> np.ndarray:
        draws = [sample_keys(seed, f"{modality}/segment", draw, ids) for draw in range(num_segments)]
        return np.stack(draws, axis=1).reshape(-1)

    frames = waves = None
    if batch.video is not None:
        frames = batch.video.flatten(0, 1).to(device, non_blocking=True)
        aspect = batch.aspect.repeat_interleave(num_segments)
        if seed is None:
            frames = eval_transform_video(frames, aspect, video)
        else:
            frames = augment_video(frames, aspect, keys("video", seed), video)
    if batch.audio is not None:
        waves = batch.audio.flatten(0, 1).to(device, non_blocking=True)
        waves = eval_transform_audio(waves, audio) if seed is None else augment_audio(waves, keys("audio", seed), audio)
    return frames, waves


def _num_views(batch: Batch) -> int:
    return next(decoded.shape[1] for decoded in (batch.video, batch.audio) if decoded is not None)
