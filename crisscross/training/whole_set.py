"""A look at every training clip between two epochs, for methods that learn from what they find (clustering, say)."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from crisscross.data.decode import DecodeError
from crisscross.data.loader import SegmentDataset
from crisscross.evaluation.features import Extraction, FeatureStore, Network, extract, reporter
from crisscross.methods.base import Trainable
from crisscross.run_directory import RunDirectory
from crisscross.training.distributed import World
from crisscross.training.interruption import INTERRUPTION, Interrupted
from crisscross.training.task import Task


class WholeSet:
    """The training clips before an epoch, through the one feature extractor, shared out to all processes."""

    def __init__(self, run: RunDirectory, task: Task[Trainable], world: World, *, epoch: int, goes_on: bool) -> None:
        """Describe the look.

        Args:
            run: where features are kept, so that a stop in the middle costs little.
            task: what is trained; the segment in the middle of each of its clips is looked at, unaugmented.
            world: this process among its fellows.
            epoch: the one that is about to begin.
            goes_on: whether an earlier start has got as far as here, with these very weights: what it has kept counts.
        """
        self._run, self._task, self._world, self._epoch, self._goes_on = run, task, world, epoch, goes_on

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
        except (DecodeError, OSError, Interrupted) as problem:
            error = problem
        error = self._world.first_error(error)
        if isinstance(error, Interrupted):
            INTERRUPTION.note(str(error))  # whichever rank was told: all leave for the same reason
        if error is not None:
            raise error
        return {letter: functools.partial(self._read, letter) for letter in networks}

    def _tidy(self) -> None:
        """Delete what no longer counts, before any process begins to look."""
        error: Exception | None = None
        if self._world.is_main:
            try:
                forget(self._run, all_but=self._folder if self._goes_on else None)
            except OSError as problem:
                error = problem
        self._world.raise_first(error)

    def _read(self, letter: str) -> np.ndarray:
        stores = [self._store(rank) for rank in range(self._world.size) if len(self._rows(rank))]
        return np.concatenate([store.array(letter)[:, 0] for store in stores])

    @property
    def _folder(self) -> Path:
        return self._run.path / "features" / f"epoch{self._epoch}"

    def _rows(self, rank: int) -> np.ndarray:
        """Return the clips that a process looks at."""
        return np.array_split(np.arange(len(self._task.clips)), self._world.size)[rank]

    def _store(self, rank: int) -> FeatureStore:
        folder = self._folder / f"part{rank + 1}of{self._world.size}"
        return FeatureStore(folder, num_clips=len(self._rows(rank)), num_segments=1)

    def _extract(self, networks: Mapping[str, Network]) -> None:
        store = self._store(self._world.rank)
        views = self._task.views.model_copy(update={"evaluation_clips": 1})
        clips = self._task.clips.part(self._rows(self._world.rank))
        extraction = Extraction(
            networks=networks,
            dataset=SegmentDataset(clips, views, modalities="".join(letter for letter in "av" if letter in networks)),
            views=views,
            execution=self._task.execution,
            device=self._world.device,
        )
        said = reporter(self._run, phase=f"a look at all clips, epoch {self._epoch}", num_clips=store.num_clips)
        extract(store, extraction, report=said if self._world.is_main else lambda done, rate: None)


def forget(run: RunDirectory, *, all_but: Path | None = None) -> None:
    """Delete what was seen of all clips, but for one folder."""
    for folder in (run.path / "features").glob("epoch*"):
        if folder != all_but:
            shutil.rmtree(folder)
