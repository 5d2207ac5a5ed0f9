"""Which samples each step sees, and which of them each process decodes.

An epoch has ``num_clips x draws_per_clip`` samples: sample ``s`` is one draw of clip ``s % num_clips``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from crisscross.data.epoch_size import steps_per_epoch
from crisscross.utils.rng import generator


class EpochPlan:
    """The samples of each step, as a function of (seed, epoch).

    No random stream is consumed.
    """

    def __init__(
        self,
        *,
        num_clips: int,
        draws_per_clip: int,
        batch_size: int,
        seed: int,
        node: str = "training",
        pick: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Plan epochs of whole batches.

        The samples that do not fill a batch are left out; they differ between epochs.

        Args:
            num_clips: clips to draw from.
            draws_per_clip: samples per clip in an epoch.
            batch_size: samples per step.
            seed: of the order of the samples.
            node: the config node that holds these settings, for messages.
            pick: returns the clip of each sample of an epoch, (S,) int64, in order; None means every clip
                ``draws_per_clip`` times, in an order drawn from the seed.

        Raises:
            ValueError: if an epoch does not fill one batch.
        """
        self.num_clips = num_clips
        self.num_samples = num_clips * draws_per_clip
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch(
            num_clips=num_clips, draws_per_clip=draws_per_clip, batch_size=batch_size, node=node
        )
        self._seed = seed
        self._pick = pick

    def batches(self, start_step: int, end_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, sample ids) for the steps in ``[start_step, end_step)``."""
        epoch = -1
        for step in range(start_step, end_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            first = (step % self.steps_per_epoch) * self.batch_size
            yield epoch, order[first : first + self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the sample ids of an epoch in order."""
        if self._pick is None:
            return generator(self._seed, "shuffle", epoch).permutation(self.num_samples)
        return sample_ids_of(self._pick(epoch), num_clips=self.num_clips)


def sample_ids_of(clips: np.ndarray, *, num_clips: int) -> np.ndarray:
    """Number the samples of an epoch.

    The k-th draw of clip c is sample ``c + k * num_clips``. The ids of an epoch are distinct, and so are the views that
    are drawn from them.

    Args:
        clips: (S,) int64, the clip of each sample.
        num_clips: N.

    Returns:
        (S,) int64 sample ids; modulo N they are the clips.
    """
    by_clip = np.argsort(clips, kind="stable")
    ordered = clips[by_clip]
    first_of_clip = np.searchsorted(ordered, ordered)
    draw = np.empty(len(clips), np.int64)
    draw[by_clip] = np.arange(len(clips)) - first_of_clip
    return clips + draw * num_clips


class RankBatches:
    """The micro-batches of one process.

    They are lists of (epoch, sample id). The loader uses them as its batch sampler.
    """

    def __init__(self, plan: EpochPlan, start: int, end: int, *, share: int, rank: int, num_ranks: int) -> None:
        """Select this process's samples of the steps in ``[start, end)``.

        Args:
            plan: the samples of each step.
            start: first step.
            end: one past the last step.
            share: samples of this process in a micro-batch.
            rank: this process.
            num_ranks: number of processes.
        """
        self._plan, self._start, self._end = plan, start, end
        self._share, self._rank, self._num_ranks = share, rank, num_ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        micro_batch_size = self._share * self._num_ranks
        for epoch, samples in self._plan.batches(self._start, self._end):
            for first in range(self._rank * self._share, len(samples), micro_batch_size):
                yield [(epoch, int(sample)) for sample in samples[first : first + self._share]]
