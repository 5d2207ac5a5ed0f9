"""Which samples each step sees. Nothing heavy is imported: a launch checks batch sizes before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class StepPlan:
    """Which samples each step sees. Pure arithmetic: nothing is consumed."""

    def __init__(
        self, *, num_clips: int, draws_per_clip: int, batch_size: int, seed: int, node: str = "training"
    ) -> None:
        """Plan epochs of whole batches; the samples that do not fill one sit out, others in each epoch.

        Args:
            num_clips: clips to draw from.
            draws_per_clip: samples of each in an epoch.
            batch_size: samples of a step.
            seed: of their order.
            node: the config's node that says so, for complaints.

        Raises:
            ValueError: when an epoch does not fill one batch.
        """
        self.num_clips = num_clips
        self.num_samples = num_clips * draws_per_clip
        self.batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = self.num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{node}.global_batch_size={batch_size} is larger than an epoch of {self.num_samples} samples"
                f" ({num_clips} clips x {draws_per_clip} draws): lower it, or raise {node}.draws_per_clip"
            )

    def batches(self, start_step: int, end_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, sample ids) for the steps from ``start_step`` up to ``end_step``."""
        from crisscross.randomness import generator  # and with it numpy

        epoch = -1
        for step in range(start_step, end_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = generator(self._seed, "shuffle", epoch).permutation(self.num_samples)
            place = (step % self.steps_per_epoch) * self.batch_size
            yield epoch, order[place : place + self.batch_size]


class PassRequests:
    """The lists of (epoch, sample id) that one process's loader decodes: its share of each forward pass."""

    def __init__(self, plan: StepPlan, start: int, end: int, *, share: int, rank: int, num_ranks: int) -> None:
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
