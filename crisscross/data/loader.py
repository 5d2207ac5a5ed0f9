"""The datasets that decode samples, and the DataLoader that collates them to batches.

A *sample* is one draw from one clip: an epoch has ``clips x draws_per_clip`` of them. Where the views of a sample start
is a function of (seed, epoch, sample id), so a step's batch does not depend on interruptions or the number of workers.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from crisscross.config.views import ViewSettings
from crisscross.data.decoded_cache import DecodedCache
from crisscross.data.media.decode import DecodeError, decode_windows
from crisscross.data.relaxation import Extent, ViewStarts, draw_view_starts, even_starts
from crisscross.utils.files import use_short_tempdir
from crisscross.utils.rng import generator
from crisscross.utils.signals import ignore_in_worker


class Sample(TypedDict):
    """The fields of ``Batch`` for one clip, not yet stacked."""

    video: np.ndarray | None
    aspect: np.floating
    audio: np.ndarray | None
    sample_ids: int
    clip_ids: int
    labels: int
    fallback: bool
    epoch: int


@dataclass(frozen=True)
class Batch:
    """Decoded samples in host memory.

    Attributes:
        video: (B, V, T, H, W, 3) uint8, scaled to the canvas; None for audio alone.
        aspect: (B,) float32, displayed width / height of the source.
        audio: (B, V, S) float32 waveforms; None for video alone.
        sample_ids: (B,) int64, unique within an epoch.
        clip_ids: (B,) int64, rows of the manifest's split.
        labels: (B,) int64.
        fallback: (B,) bool, whether the clip is too short for the relaxation.
        epoch: the epoch of all samples.
    """

    video: torch.Tensor | None
    aspect: torch.Tensor
    audio: torch.Tensor | None
    sample_ids: torch.Tensor
    clip_ids: torch.Tensor
    labels: torch.Tensor
    fallback: torch.Tensor
    epoch: int

    def pin_memory(self) -> Batch:
        """Copy the tensors to pinned memory.

        The DataLoader calls this if ``pin_memory`` is set.
        """
        pinned: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **pinned)


class Clips:
    """The clips of one split as flat arrays.

    Loader workers share the arrays without copying.
    """

    def __init__(self, frame: pd.DataFrame, root: Path, cache: DecodedCache | None = None) -> None:
        self.root, self.cache = root, cache
        self.paths = np.array([os.fsencode(path) for path in frame["path"]])
        self.ids = frame["clip_id"].to_numpy(np.int64)
        self.labels = frame["label_id"].to_numpy(np.int64)
        extents = ["video_start_s", "video_end_s", "audio_start_s", "audio_end_s"]
        self.extents = frame[extents].to_numpy(np.float64)
        self.aspects = (frame["width"] / frame["height"]).to_numpy(np.float32)
        self.sizes = frame["size_bytes"].to_numpy(np.int64)
        self.mtimes_ns = frame["mtime_ns"].to_numpy(np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, rows: np.ndarray) -> Clips:
        """Return some of the clips."""
        chosen = copy.copy(self)
        for name in ("paths", "ids", "labels", "extents", "aspects", "sizes", "mtimes_ns"):
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def path(self, index: int) -> Path:
        """Return a clip's file."""
        return self.root / os.fsdecode(self.paths[index])

    def stamp(self, index: int) -> str:
        """Return a clip's path, size and time: another stamp is another file."""
        return f"{self.path(index)} {self.sizes[index]} {self.mtimes_ns[index]}"

    def extent(self, index: int, modalities: str = "av") -> Extent:
        """Return the start and end of a clip's streams.

        A modality that is left out gets those of the other.
        """
        video, audio = self.extents[index][:2], self.extents[index][2:]
        return Extent(*(video if "v" in modalities else audio), *(audio if "a" in modalities else video))


class ViewDataset(Dataset[Sample | DecodeError]):
    """The views of one sample, decoded; indexed by (epoch, sample id)."""

    def __init__(
        self,
        clips: Clips,
        views: ViewSettings,
        *,
        relaxation: str,
        seed: int,
        num_views: int,
        modalities: str = "av",
    ) -> None:
        """Set what a sample holds.

        Args:
            clips: the clips to draw from.
            views: lengths, rates and canvas of the segments.
            relaxation: how far apart the two views start.
            seed: of the draws.
            num_views: number of decoded views, 1 or 2.
            modalities: which modalities to decode: ``v``, ``a`` or ``av``.
        """
        self.clips = clips
        self._views = views
        self._relaxation = relaxation
        self._seed = seed
        self._num_views = num_views
        self._modalities = modalities

    def __getitem__(self, request: tuple[int, int]) -> Sample | DecodeError:
        """Return the sample, or the error for the trainer to raise.

        An error raised in a worker would be wrapped in a traceback.
        """
        epoch, sample_id = request
        index = sample_id % len(self.clips)
        rng = generator(self._seed, "views", epoch, sample_id)
        starts = draw_starts(self.clips, index, self._views, self._relaxation, modalities=self._modalities, rng=rng)
        return _decoded(
            self.clips,
            index,
            self._views,
            starts.video_s[: self._num_views],
            starts.audio_s[: self._num_views],
            modalities=self._modalities,
            sample_id=sample_id,
            fallback=bool(starts.fallback),
            epoch=epoch,
        )


class SegmentDataset(Dataset[Sample | DecodeError]):
    """Several segments of one clip, decoded; indexed by the clip's row.

    The segments are evenly spaced or drawn at random, independently of each other.
    """

    def __init__(
        self, clips: Clips, views: ViewSettings, *, modalities: str = "av", num_draws: int = 0, seed: int = 0
    ) -> None:
        """Set what is decoded.

        Args:
            clips: the clips of one or several splits.
            views: lengths, rates and canvas of the segments, and the number of evenly spaced ones
                (``evaluation_clips``).
            modalities: which modalities to decode: ``v``, ``a`` or ``av``.
            num_draws: number of random segments; 0 means evenly spaced ones.
            seed: of the draws.
        """
        self.clips = clips
        self._views = views
        self._modalities = modalities
        self._num_draws = num_draws
        self._seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample | DecodeError:
        """Return the clip's segments, or the error for the caller to raise."""
        starts = self._drawn(index) if self._num_draws else self._evenly_spaced(index)
        sample_id = self.clips.ids[index]
        return _decoded(self.clips, index, self._views, *starts, modalities=self._modalities, sample_id=sample_id)

    @property
    def clip_bytes(self) -> int:
        """Size of one clip's decoded segments in bytes."""
        video, audio = self._views.video, self._views.audio
        height, width = video.canvas_px
        video_bytes = video.num_frames * height * width * 3 if "v" in self._modalities else 0
        audio_bytes = round(audio.seconds * audio.sample_rate_hz) * 4 if "a" in self._modalities else 0
        return (self._num_draws or self._views.evaluation_clips) * (video_bytes + audio_bytes)

    def _evenly_spaced(self, index: int) -> tuple[list[float], list[float]]:
        extent = self.clips.extent(index, self._modalities)
        views, num = self._views, self._views.evaluation_clips
        return (
            even_starts(extent.video_start_s, extent.video_end_s, seconds=views.video.seconds, num=num),
            even_starts(extent.audio_start_s, extent.audio_end_s, seconds=views.audio.seconds, num=num),
        )

    def _drawn(self, index: int) -> tuple[list[float], list[float]]:
        keys = [(self._seed, "segments", draw, int(self.clips.ids[index])) for draw in range(self._num_draws)]
        starts = [
            draw_starts(self.clips, index, self._views, "none", modalities=self._modalities, rng=generator(*key))
            for key in keys
        ]
        return [start.video_s[0] for start in starts], [start.audio_s[0] for start in starts]


def draw_starts(
    clips: Clips, index: int, views: ViewSettings, relaxation: str, *, modalities: str, rng: np.random.Generator
) -> ViewStarts:
    """Draw where the two views of a clip start.

    If only one modality is decoded, the draw does not depend on the other, which gets its extent and length.
    """
    video_s, audio_s = views.video.seconds, views.audio.seconds
    return draw_view_starts(
        relaxation,
        clips.extent(index, modalities),
        video_seconds=video_s if "v" in modalities else audio_s,
        audio_seconds=audio_s if "a" in modalities else video_s,
        rng=rng,
    )


def _decoded(
    clips: Clips,
    index: int,
    views: ViewSettings,
    video_starts_s: Sequence[float],
    audio_starts_s: Sequence[float],
    *,
    modalities: str,
    sample_id: int,
    fallback: bool = False,
    epoch: int = 0,
) -> Sample | DecodeError:
    """Decode the segments of one clip, or return the error."""
    path, video, audio = clips.path(index), None, None
    if clips.cache is not None and "v" in modalities:
        video = clips.cache.video(path, clips.stamp(index), views, video_starts_s)
    if clips.cache is not None and "a" in modalities:
        audio = clips.cache.audio(path, clips.stamp(index), views, audio_starts_s)
    video_starts_s = video_starts_s if "v" in modalities and video is None else ()
    audio_starts_s = audio_starts_s if "a" in modalities and audio is None else ()
    try:
        if len(video_starts_s) or len(audio_starts_s):
            decoded = decode_segments(path, views, video_starts_s=video_starts_s, audio_starts_s=audio_starts_s)
            video, audio = (video if decoded[0] is None else decoded[0]), (audio if decoded[1] is None else decoded[1])
    except (DecodeError, OSError) as error:
        return _named(error, path)
    return {
        "video": video,
        "aspect": clips.aspects[index],
        "audio": audio,
        "sample_ids": sample_id,
        "clip_ids": index,
        "labels": clips.labels[index],
        "fallback": fallback,
        "epoch": epoch,
    }


def decode_segments(
    path: Path, views: ViewSettings, *, video_starts_s: Sequence[float], audio_starts_s: Sequence[float]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Decode segments of one file at the rates of the settings.

    Returns:
        Video (V, T, H, W, 3) uint8 and audio (A, S) float32; None where no start is given.

    Raises:
        DecodeError: if the file cannot be opened, lacks a stream, or is damaged within a segment.
    """
    return decode_windows(
        path,
        video_starts_s=video_starts_s,
        num_frames=views.video.num_frames,
        frame_rate_hz=views.video.frame_rate_hz,
        canvas=views.video.canvas_px,
        audio_starts_s=audio_starts_s,
        audio_seconds=views.audio.seconds,
        sample_rate_hz=views.audio.sample_rate_hz,
    )


def _named(error: Exception, path: Path) -> DecodeError:
    """Return an error that names the file; an ``OSError`` does not always."""
    return error if isinstance(error, DecodeError) else DecodeError.about(path, str(error))


def collate(samples: list[Sample | DecodeError]) -> Batch | DecodeError:
    """Stack samples to a batch, or return the first decoding error."""
    decoded: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DecodeError):
            return sample
        decoded.append(sample)
    return Batch(
        video=_stacked_segments([sample["video"] for sample in decoded]),
        aspect=_stacked([sample["aspect"] for sample in decoded]),
        audio=_stacked_segments([sample["audio"] for sample in decoded]),
        sample_ids=_stacked([sample["sample_ids"] for sample in decoded]),
        clip_ids=_stacked([sample["clip_ids"] for sample in decoded]),
        labels=_stacked([sample["labels"] for sample in decoded]),
        fallback=_stacked([sample["fallback"] for sample in decoded]),
        epoch=decoded[0]["epoch"],
    )


def _stacked_segments(segments: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    return None if segments[0] is None else _stacked(segments)


def _stacked(values: Sequence[object]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(value) for value in values]))


def _set_up_worker(worker_id: int) -> None:
    ignore_in_worker()
    torch.set_num_threads(1)


def batch_loader(
    dataset: Dataset[Sample | DecodeError],
    requests: Iterable[list[int]] | Iterable[list[tuple[int, int]]],
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Sample | DecodeError]:
    """Return a DataLoader over lists of indices, in their order.

    Args:
        dataset: indexed by the entries of ``requests``.
        requests: lists of indices, one list per batch.
        num_workers: number of loader processes; 0 decodes in the calling process.
        pin_memory: whether to copy batches to pinned memory, for a GPU.

    Raises:
        OSError: if workers cannot have sockets in any folder for temporary files.
    """
    if num_workers:
        use_short_tempdir()
    return DataLoader(
        dataset,
        batch_sampler=requests,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=_set_up_worker,
        # Forked children end when this process dies; children of a fork server would outlive it.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # without it the loader draws from the global generator
    )
