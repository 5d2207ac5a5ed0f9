"""The one feature extractor: frozen networks over several segments of every clip, kept on disk as they come."""

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
from crisscross.training.augment import segment_views
from crisscross.utils.distributed import DistributedContext
from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import INTERRUPTION, Preempted, raise_if_preempted

logger = logging.getLogger(__name__)
SEGMENTS_PER_BATCH = 160
"""Segments in one pass through a network, at most: 16 clips of 10 segments (chosen by us)."""

BATCH_BYTES = 2**28
"""Bytes of decoded segments in one pass, at most, unless one clip has more: every loader worker holds two of these."""

Network = Callable[[torch.Tensor], torch.Tensor]


class _Done(TypedDict):
    """``done.json``: how many clips have their features, and how many numbers each is, by modality."""

    clips: int
    dims: dict[str, int]


@dataclass(frozen=True)
class FeatureStore:
    """Features of clips, one file a modality: float32 rows, clip after clip, segment after segment.

    The folder lies in a run directory, whose identity covers weights, clips and settings: it cannot be stale. Rows
    count only as far as ``done.json`` says, which is written when they are on disk.

    Attributes:
        folder: where the files lie.
        num_clips: N.
        num_segments: V, of a clip.
    """

    folder: Path
    num_clips: int
    num_segments: int

    @property
    def done(self) -> int:
        """How many clips have their features, from the first on."""
        return self._known()["clips"]

    @property
    def is_complete(self) -> bool:
        """Whether all have."""
        return self.done == self.num_clips

    def array(self, modality: str) -> np.ndarray:
        """Return the features of ``v`` or ``a``, (N, V, D) float32, read from disk as they are used."""
        dim = self._known()["dims"][modality]
        return np.memmap(self._path(modality), np.float32, "r", shape=(self.num_clips, self.num_segments, dim))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, np.ndarray]], None]]:
        """Give a function that appends features of the next clips, (B, V, D) by modality; all is durable at the end."""
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
        """Open a file behind the rows that count."""
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
    """Return what ``extract`` may call as ``report``: it says in the run's progress how far the extraction is."""

    def report(done: int, rate: float) -> None:
        run.write_progress(
            state="running",
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
    """What is extracted, and how.

    Attributes:
        networks: from the input of a modality, ``v`` or ``a``, to features (B, D).
        dataset: decodes the segments of a clip.
        views: transforms.
        execution: loader processes, and how often to keep what there is (``checkpoint_minutes``).
        device: where to compute; the networks are there.
        augmentation_seed: of augmentations, keyed by clip and segment; None = none.
    """

    networks: Mapping[str, Network]
    dataset: SegmentDataset
    views: ViewSettings
    execution: ExecutionSettings
    device: torch.device
    augmentation_seed: int | None = None


def extract(store: FeatureStore, extraction: Extraction, *, report: Callable[[int, float], None]) -> None:
    """Run frozen networks, in eval mode, over every clip, from wherever an earlier start has stopped.

    Args:
        store: where features are kept; filled up to its last clip.
        extraction: what to do.
        report: called after every batch with the clips done and clips a second.

    Raises:
        DecodeError: when a clip cannot be read any more, naming it.
        Interrupted: when a signal asked the job to leave; what is there is kept.
    """
    begin = store.done
    if begin == store.num_clips:
        return
    if begin:
        logger.info("going on from clip %d of %d", begin, store.num_clips)
    batches = _batches(store, extraction, begin)
    started, done = time.monotonic(), begin
    while done < store.num_clips:
        last_save = time.monotonic()
        with store.writing() as append:
            for features in batches:
                append(features)
                done += len(next(iter(features.values())))
                report(done, (done - begin) / (time.monotonic() - started))
                if INTERRUPTION.requested:
                    break
                if time.monotonic() - last_save > 60 * extraction.execution.checkpoint_minutes:
                    break
        if done < store.num_clips:
            raise_if_preempted()


def _batches(store: FeatureStore, extraction: Extraction, begin: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the features of clip after clip, some at a time."""
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
    """The training clips before an epoch, through the one feature extractor, shared out to all processes."""

    def __init__(
        self,
        run: RunDirectory,
        clips: Clips,
        views: ViewSettings,
        execution: ExecutionSettings,
        world: DistributedContext,
        *,
        epoch: int,
        goes_on: bool,
    ) -> None:
        """Describe the look.

        Args:
            run: where features are kept, so that a stop in the middle costs little.
            clips: the training clips; the segment in the middle of each is looked at, unaugmented.
            views: lengths and transforms of a segment.
            execution: devices and loaders.
            world: this process among its fellows.
            epoch: the one that is about to begin.
            goes_on: whether an earlier start has got as far as here, with these very weights: what it has kept counts.
        """
        self._run, self._clips, self._execution, self._world = run, clips, execution, world
        self._views = views.model_copy(update={"evaluation_clips": 1})
        self._epoch, self._goes_on = epoch, goes_on

    def features_of(self, networks: Mapping[str, Network]) -> dict[str, Callable[[], np.ndarray]]:
        """Look at every training clip; return what reads the features from disk, (N, D), by modality.

        Every process has to call it. What is read is the same on each.

        Args:
            networks: by modality, ``v`` or ``a``, from views (B, ...) to features (B, D). They are called in the mode
                in which they are: put them into eval mode.

        Raises:
            Interrupted: a signal asked one of the processes to leave; what there is is kept.
            DecodeError: a clip cannot be read any more, naming it.
            OSError: the features cannot be kept.
        """
        self._tidy()
        error: Exception | None = None
        try:
            self._extract(networks)
        except (DecodeError, OSError, Preempted) as problem:
            error = problem
        error = self._world.first_error(error)
        if isinstance(error, Preempted):
            INTERRUPTION.note(str(error))  # whichever rank was told: all leave for the same reason
        if error is not None:
            raise error
        return {letter: functools.partial(self._read, letter) for letter in networks}

    def _tidy(self) -> None:
        """Delete what no longer counts, before any process begins to look."""
        error: Exception | None = None
        if self._world.is_main_process:
            try:
                forget(self._run, all_but=self._folder if self._goes_on else None)
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
        """Return the clips that a process looks at."""
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
        said = reporter(self._run, phase=f"a look at all clips, epoch {self._epoch}", num_clips=store.num_clips)
        extract(store, extraction, report=said if self._world.is_main_process else lambda done, rate: None)


def forget(run: RunDirectory, *, all_but: Path | None = None) -> None:
    """Delete what was seen of all clips, but for one folder."""
    for folder in (run.path / "features").glob("epoch*"):
        if folder != all_but:
            shutil.rmtree(folder)
