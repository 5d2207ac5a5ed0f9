"""Feature extraction: frozen networks over segments of every clip, stored on disk."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch

from crisscross.config.runtime import ExecutionSettings
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings, ViewSettings
from crisscross.data.loader import Clips, SegmentDataset, batch_loader
from crisscross.data.media.decode import DecodeError
from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from crisscross.training.augment import segment_views
from crisscross.utils.distributed import DistributedContext
from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import SHUTDOWN, Preempted, raise_if_preempted

logger = logging.getLogger(__name__)
SEGMENTS_PER_BATCH = 160  # ours: 16 clips of 10 segments
"""Segments in one forward pass, at most."""

BATCH_BYTES = 2**28  # ours: every loader worker has two such batches in memory
"""Bytes of decoded segments in one forward pass, at most, unless one clip has more."""

Network = Callable[[torch.Tensor], torch.Tensor]


class _Done(TypedDict):
    """``done.json``: number of clips that are done, and feature dimension by modality."""

    clips: int
    dims: dict[str, int]


@dataclass(frozen=True)
class FeatureStore:
    """Features of clips, one file per modality.

    A file has float32 rows, by clip and segment. The folder is in a run directory, whose identity covers weights, clips
    and settings, so features cannot be outdated. Only the rows that ``done.json`` counts are valid; it is written after
    they are on disk.

    Attributes:
        folder: folder of the files.
        num_clips: N.
        num_segments: V, segments per clip.
    """

    folder: Path
    num_clips: int
    num_segments: int

    @property
    def done(self) -> int:
        """Number of clips that are done, from the first on."""
        return self._known()["clips"]

    @property
    def is_complete(self) -> bool:
        """Whether all clips are done."""
        return self.done == self.num_clips

    def array(self, modality: str) -> np.ndarray:
        """Return the features of ``v`` or ``a``.

        Returns:
            A float32 memory map, (N, V, D).
        """
        dim = self._known()["dims"][modality]
        return np.memmap(self._path(modality), np.float32, "r", shape=(self.num_clips, self.num_segments, dim))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
        """Yield a function that appends features of the next clips.

        Its argument is (B, V, D) by modality. At the end of the context, all rows are on disk.
        """
        files: dict[str, BinaryIO] = {}
        state = self._known()
        self.folder.mkdir(parents=True, exist_ok=True)

        def append(features: Mapping[str, np.ndarray]) -> None:
            for modality, rows in features.items():
                if modality not in files:
                    files[modality] = self._open(modality, state["clips"], rows.shape[-1])
                files[modality].write(np.ascontiguousarray(rows, np.float32).tobytes())
            state["dims"] = {modality: rows.shape[-1] for modality, rows in features.items()}
            state["clips"] += len(rows)

        try:
            yield append
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            write_json(self.folder / "done.json", state)
        finally:
            for file in files.values():
                file.close()

    def _open(self, modality: str, clips: int, dim: int) -> BinaryIO:
        """Open a file for appending after its valid rows."""
        file = self._path(modality).open("ab")
        file.truncate(clips * self.num_segments * dim * 4)
        return file

    def _path(self, modality: str) -> Path:
        return self.folder / f"{modality}.f32"

    def _known(self) -> _Done:
        known: _Done = read_json(self.folder / "done.json") or _Done(clips=0, dims={})
        for modality, dim in known["dims"].items():
            path, expected = self._path(modality), known["clips"] * self.num_segments * dim * 4
            if not path.is_file() or path.stat().st_size < expected:
                logger.warning("%s is shorter than it should be: extracting the features again", path)
                return _Done(clips=0, dims={})
        return known


def reporter(run: RunDirectory, *, phase: str, num_clips: int) -> Callable[[int, float], None]:
    """Return a ``report`` callback of ``extract`` that writes the run's progress."""

    def report(done: int, rate: float) -> None:
        run.write_progress(
            state=RunState.RUNNING,
            phase=phase,
            step=done,
            total=num_clips,
            rate=rate,
            rate_unit="clips/s",
            eta_s=(num_clips - done) / rate,
        )

    return report


@dataclass(frozen=True)
class Extraction:
    """Networks, data and settings of a feature extraction.

    Attributes:
        networks: by modality, ``v`` or ``a``: a function from inputs to features (B, D).
        dataset: decodes the segments of a clip.
        views: transforms.
        execution: loader processes, and the interval of saving (``checkpoint_minutes``).
        device: device of the networks.
        augmentation_seed: seed of augmentations, keyed by clip and segment; None = no augmentation.
    """

    networks: Mapping[str, Network]
    dataset: SegmentDataset
    views: ViewSettings
    execution: ExecutionSettings
    device: torch.device
    augmentation_seed: int | None = None


def extract(store: FeatureStore, extraction: Extraction, *, report: Callable[[int, float], None]) -> None:
    """Extract features of all clips, resuming after those that are stored.

    Args:
        store: store of the features; it is filled up to its last clip.
        extraction: networks, data and settings; the networks are in eval mode.
        report: called after every batch with the number of clips done and clips per second.

    Raises:
        DecodeError: if a clip cannot be decoded any more; the message names it.
        Preempted: if the process got a shutdown signal; finished features are kept.
    """
    begin = store.done
    if begin == store.num_clips:
        return
    if begin:
        logger.info("resuming from clip %d of %d", begin, store.num_clips)
    batches = _batches(store, extraction, begin)
    started, done = time.monotonic(), begin
    while done < store.num_clips:
        last_save = time.monotonic()
        with store.writing() as append:
            for features in batches:
                append(features)
                done += len(next(iter(features.values())))
                report(done, (done - begin) / (time.monotonic() - started))
                if SHUTDOWN.requested:
                    break
                if time.monotonic() - last_save > 60 * extraction.execution.checkpoint_minutes:
                    break
        if done < store.num_clips:
            raise_if_preempted()


def _batches(store: FeatureStore, extraction: Extraction, begin: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the features of consecutive clips, some at a time."""
    clips_a_batch = max(1, min(SEGMENTS_PER_BATCH // store.num_segments, BATCH_BYTES // extraction.dataset.clip_bytes))
    requests = [
        list(range(first, min(first + clips_a_batch, store.num_clips)))
        for first in range(begin, store.num_clips, clips_a_batch)
    ]
    loader = batch_loader(
        extraction.dataset,
        requests,
        num_workers=extraction.execution.num_workers,
        pin_memory=extraction.device.type == "cuda",
    )
    video = VideoTransformSettings(**extraction.views.video.transform)
    audio = AudioTransformSettings(**extraction.views.audio.transform)
    for batch in loader:
        if isinstance(batch, DecodeError):
            raise batch
        with torch.inference_mode():
            inputs = segment_views(
                batch, device=extraction.device, video=video, audio=audio, seed=extraction.augmentation_seed
            )
            yield {
                modality: network(x).float().cpu().numpy().reshape(len(batch.labels), store.num_segments, -1)
                for modality, x in zip("va", inputs, strict=True)
                if x is not None and (network := extraction.networks.get(modality)) is not None
            }


class TrainSetFeatures:
    """Feature extraction over the training set before an epoch, on all processes."""

    def __init__(
        self,
        run: RunDirectory,
        clips: Clips,
        views: ViewSettings,
        execution: ExecutionSettings,
        world: DistributedContext,
        *,
        epoch: int,
        resumed: bool,
    ) -> None:
        """Describe the extraction.

        Args:
            run: run directory in which features are stored, so that an interrupted extraction can be resumed.
            clips: the training clips; features are of the middle segment of each, without augmentation.
            views: lengths and transforms of a segment.
            execution: devices and loaders.
            world: this process's rank, world size and device.
            epoch: the epoch that starts.
            resumed: whether an earlier start of the job may have stored features of the same weights.
        """
        self._run, self._clips, self._execution, self._world = run, clips, execution, world
        self._views = views.model_copy(update={"evaluation_clips": 1})
        self._epoch, self._resumed = epoch, resumed

    def extract(self, networks: Mapping[str, Network]) -> dict[str, Callable[[], np.ndarray]]:
        """Extract features of all training clips.

        A collective: every process must call it. The features are the same on every process.

        Args:
            networks: by modality, ``v`` or ``a``: a function from views (B, ...) to features (B, D). Set them to eval
                mode before.

        Returns:
            By modality, a function that reads the features, (N, D), from disk.

        Raises:
            Preempted: if a process got a shutdown signal; finished features are kept.
            DecodeError: if a clip cannot be decoded any more; the message names it.
            OSError: if the features cannot be stored.
        """
        self._clear_outdated()
        error: Exception | None = None
        try:
            self._extract(networks)
        except (DecodeError, OSError, Preempted) as problem:
            error = problem
        error = self._world.first_error(error)
        if isinstance(error, Preempted):
            SHUTDOWN.propagate(str(error))  # of any rank: all exit for the same reason
        if error is not None:
            raise error
        return {letter: functools.partial(self._read, letter) for letter in networks}

    def _clear_outdated(self) -> None:
        """Delete outdated features, before any process starts to extract."""
        error: Exception | None = None
        if self._world.is_main_process:
            try:
                clear_train_set_features(self._run, all_but=self._folder if self._resumed else None)
            except OSError as problem:
                error = problem
        self._world.raise_on_any_rank(error)

    def _read(self, letter: str) -> np.ndarray:
        stores = [self._store(rank) for rank in range(self._world.size) if len(self._rows(rank))]
        return np.concatenate([store.array(letter)[:, 0] for store in stores])

    @property
    def _folder(self) -> Path:
        return self._run.path / "features" / f"epoch{self._epoch}"

    def _rows(self, rank: int) -> np.ndarray:
        """Return the clips of a process's share."""
        return np.array_split(np.arange(len(self._clips)), self._world.size)[rank]

    def _store(self, rank: int) -> FeatureStore:
        folder = self._folder / f"part{rank + 1}of{self._world.size}"
        return FeatureStore(folder, num_clips=len(self._rows(rank)), num_segments=1)

    def _extract(self, networks: Mapping[str, Network]) -> None:
        store = self._store(self._world.rank)
        clips = self._clips.part(self._rows(self._world.rank))
        modalities = "".join(letter for letter in "av" if letter in networks)
        extraction = Extraction(
            networks=networks,
            dataset=SegmentDataset(clips, self._views, modalities=modalities),
            views=self._views,
            execution=self._execution,
            device=self._world.device,
        )
        phase = f"features of all clips, epoch {self._epoch}"
        report = reporter(self._run, phase=phase, num_clips=store.num_clips)
        extract(store, extraction, report=report if self._world.is_main_process else lambda done, rate: None)


def clear_train_set_features(run: RunDirectory, *, all_but: Path | None = None) -> None:
    """Delete the features of the training set, except one folder."""
    for folder in (run.path / "features").glob("epoch*"):
        if folder != all_but:
            shutil.rmtree(folder)
