"""Which samples each step sees. Nothing heavy is imported: a launch checks batch sizes before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class EpochPlan:
    """Which samples each step sees. Pure arithmetic: nothing is consumed."""

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
        """Plan epochs of whole batches; the samples that do not fill one sit out, others in each epoch.

        Args:
            num_clips: clips to draw from.
            draws_per_clip: samples of each in an epoch.
            batch_size: samples of a step.
            seed: of their order.
            node: the config's node that says so, for complaints.
            pick: from an epoch to the clip of each of its samples, in their order; None = all clips as often as any
                other, in an order drawn from the seed.

        Raises:
            ValueError: when an epoch does not fill one batch.
        """
        self.num_clips = num_clips
        self.num_samples = num_clips * draws_per_clip
        self.batch_size = batch_size
        self._seed = seed
        self._pick = pick
        self.steps_per_epoch = self.num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{node}.global_batch_size={batch_size} is larger than an epoch of {self.num_samples} samples"
                f" ({num_clips} clips x {draws_per_clip} draws): lower it, or raise {node}.draws_per_clip"
            )

    def batches(self, start_step: int, end_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, sample ids) for the steps from ``start_step`` up to ``end_step``."""
        epoch = -1
        for step in range(start_step, end_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            place = (step % self.steps_per_epoch) * self.batch_size
            yield epoch, order[place : place + self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the sample ids of an epoch in their order."""
        from crisscross.utils.rng import generator  # and with it numpy

        if self._pick is None:
            return generator(self._seed, "shuffle", epoch).permutation(self.num_samples)
        return sample_ids_of(self._pick(epoch), num_clips=self.num_clips)


def sample_ids_of(clips: np.ndarray, *, num_clips: int) -> np.ndarray:
    """Number the samples of an epoch whose clips are given: the k-th draw of clip c is sample ``c + k * num_clips``.

    No two samples of an epoch have the same number, and with it the same views.

    Args:
        clips: (S,), the clip of each sample.
        num_clips: N.

    Returns:
        (S,) sample ids; modulo N they are the clips.
    """
    import numpy as np

    by_clip = np.argsort(clips, kind="stable")
    ordered = clips[by_clip]
    first_of_clip = np.searchsorted(ordered, ordered)
    draw = np.empty(len(clips), np.int64)
    draw[by_clip] = np.arange(len(clips)) - first_of_clip
    return clips + draw * num_clips


class RankBatches:
    """The lists of (epoch, sample id) that one process's loader decodes: its share of each forward pass."""

    def __init__(self, plan: EpochPlan, start: int, end: int, *, share: int, rank: int, num_ranks: int) -> None:
        """Ask for the steps from ``start`` up to ``end``.

        Args:
            plan: which samples a step sees.
            start: first step.
            end: one past the last step.
            share: samples of this process in a pass.
            rank: this process.
            num_ranks: processes.
        """
        self._plan, self._start, self._end = plan, start, end
        self._share, self._rank, self._num_ranks = share, rank, num_ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_pass = self._share * self._num_ranks
        for epoch, samples in self._plan.batches(self._start, self._end):
            for first in range(self._rank * self._share, len(samples), per_pass):
                yield [(epoch, int(sample)) for sample in samples[first : first + self._share]]
