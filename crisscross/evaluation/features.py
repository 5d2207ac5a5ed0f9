"""The one feature extractor: frozen backbones over evenly spaced segments of every clip."""

from __future__ import annotations

import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crisscross.data.decode import DecodeError
from crisscross.data.loader import Clips, SegmentDataset, batch_loader
from crisscross.files import write_atomically
from crisscross.models.backbones import Backbones
from crisscross.settings import ExecutionSettings, ViewSettings
from crisscross.training.interruption import INTERRUPTION, Interrupted
from crisscross.training.views import segment_views
from crisscross.transforms.settings import AudioTransformSettings, VideoTransformSettings

logger = logging.getLogger(__name__)

VIDEOS_PER_BATCH = 16
ARRAYS = ("video", "audio", "labels")


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

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """Return the features of clips whose parts follow one another."""
        return cls(*(np.concatenate([vars(part)[name] for part in parts]) for name in ARRAYS))

    def save(self, path: Path) -> None:
        """Write to a file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, **vars(self)))

    @classmethod
    def load(cls, path: Path) -> Features | None:
        """Read a file; None, with a warning, when it is damaged, and None when there is none."""
        if not path.exists():
            return None
        try:
            with np.load(path) as stored:
                return cls(**{name: stored[name] for name in ARRAYS})
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): extracting the features again", path, error)
            return None


def cached_features(path: Path, extract: Callable[[Parts], Features]) -> Features:
    """Return the features kept at ``path``, extracting them when there are none.

    The file lies in the run directory, whose identity covers weights, clips and settings: it cannot be stale.

    Args:
        path: ``features/<split>.npz``.
        extract: called with the place where it may keep what it has before it is done.
    """
    features = Features.load(path)
    if features is None:
        parts = Parts(path.with_suffix(".parts"))
        features = extract(parts)
        features.save(path)
        parts.remove()
    return features


@dataclass(frozen=True)
class Parts:
    """What an extraction has so far: files named after the first clip and one past the last, ``0000000-0000160.npz``.

    Attributes:
        folder: where they lie; made with the first part.
    """

    folder: Path

    def load(self) -> list[Features]:
        """Return the parts that follow one another from the first clip on; what comes after a gap is passed over."""
        found: list[Features] = []
        end = 0
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            first, last = (int(number) for number in path.stem.split("-"))
            part = Features.load(path) if first == end else None
            if part is None or len(part.labels) != last - first:
                break
            found.append(part)
            end = last
        return found

    def save(self, part: Features, *, first: int) -> None:
        """Keep the features of the clips from ``first`` on."""
        part.save(self.folder / f"{first:07d}-{first + len(part.labels):07d}.npz")

    def remove(self) -> None:
        """Delete them."""
        shutil.rmtree(self.folder, ignore_errors=True)


@torch.inference_mode()
def extract_features(
    backbones: Backbones,
    clips: Clips,
    views: ViewSettings,
    *,
    execution: ExecutionSettings,
    device: torch.device,
    report: Callable[[int, float], None],
    parts: Parts,
) -> Features:
    """Run frozen backbones, in eval mode, over every clip of a split, from wherever an earlier start has stopped.

    Args:
        backbones: on the device.
        clips: the split.
        views: segment lengths, transforms and the number of segments a clip.
        execution: loader processes, and how often to keep what there is (``checkpoint_minutes``).
        device: where to compute.
        report: called after every batch with the clips done and clips a second.
        parts: where to keep features before all are there.

    Raises:
        DecodeError: when a clip cannot be read any more, naming it.
        Interrupted: when a signal asked the job to leave.
    """
    backbones.eval()
    video_transform = VideoTransformSettings(**views.video.transform)
    audio_transform = AudioTransformSettings(**views.audio.transform)
    kept = parts.load()
    begin = sum(len(part.labels) for part in kept)
    requests = [
        list(range(first, min(first + VIDEOS_PER_BATCH, len(clips))))
        for first in range(begin, len(clips), VIDEOS_PER_BATCH)
    ]
    loader = batch_loader(
        SegmentDataset(clips, views),
        requests,
        num_workers=execution.num_workers,
        pin_memory=device.type == "cuda",
    )
    if begin:
        logger.info("going on from clip %d of %d", begin, len(clips))
    new: list[Features] = []
    done, started, last_save = begin, time.monotonic(), time.monotonic()
    for batch in loader:
        if isinstance(batch, DecodeError):
            raise batch
        frames, spectrograms = segment_views(batch, device=device, video=video_transform, audio=audio_transform)
        shape = (batch.video.shape[0], views.evaluation_clips, -1)
        video = backbones.video_backbone(frames).float().cpu().numpy().reshape(shape)
        audio = backbones.audio_backbone(spectrograms).float().cpu().numpy().reshape(shape)
        new.append(Features(video, audio, batch.labels.numpy()))
        done += len(batch.labels)
        report(done, (done - begin) / (time.monotonic() - started))
        leave = INTERRUPTION.requested and done < len(clips)
        if leave or time.monotonic() - last_save > 60 * execution.checkpoint_minutes:
            part = Features.joined(new)
            parts.save(part, first=done - len(part.labels))
            kept, new, last_save = [*kept, part], [], time.monotonic()
        if leave:
            raise Interrupted(INTERRUPTION.signal_name)
    return Features.joined([*kept, *new])
