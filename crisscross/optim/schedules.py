"""Learning-rate schedules: pure functions from the step to the learning rate.

``step`` counts optimizer updates from 0. Durations are in steps: ``epochs_to_steps`` converts epochs once. A schedule
has no state, so a resumed run gets the same rates as an uninterrupted one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from crisscross.config.optim import ConstantSettings, ScheduleSettings, WarmupCosineSettings

LearningRateSchedule = Callable[[int], float]


def constant(step: int, *, value: float) -> float:
    """Return ``value`` at every step (the predictors' schedule, as in the paper).

    Raises:
        ValueError: if ``step`` is negative.
    """
    _check_step(step)
    return value


def warmup_cosine(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float, start: float = 0.0
) -> float:
    """Return a linear warm-up followed by a cosine decay.

    The schedule of backbones and projectors (as in the paper). It is exactly ``start`` at step 0 (``peak``
    without warm-up), ``peak`` at ``warmup_steps``, and ``final`` at ``total_steps``, after the last update (ours: these
    exact steps).

    Args:
        step: number of the update, from 0 to ``total_steps``.
        total_steps: updates of the whole training.
        warmup_steps: updates of the warm-up, less than ``total_steps``; 0 = no warm-up.
        peak: learning rate after the warm-up.
        final: learning rate at the end.
        start: learning rate at step 0.

    Raises:
        ValueError: if ``step`` is outside the training, or the warm-up is not shorter than the training.
    """
    _check_step(step)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} of total_steps={total_steps}: expected 0 <= warm-up < total; "
            "shorten the warm-up or train longer"
        )
    if step > total_steps:
        raise ValueError(f"step={step}: expected at most total_steps={total_steps}; the schedule has ended")
    if step < warmup_steps:
        return _between(start, peak, step / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return _between(final, peak, 0.5 * (1.0 + math.cos(math.pi * progress)))


def steps_decay(
    step: int, *, initial: float, milestones: Sequence[int], gamma: float, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """Multiply the rate by ``gamma`` at each milestone, after an optional warm-up.

    The schedule of fine-tuning (as in the paper).

    Args:
        step: number of the update, from 0.
        initial: learning rate after the warm-up, before the first milestone.
        milestones: steps in ascending order; the update at a milestone already has the lower rate.
        gamma: the factor, 0.3 in the paper's fine-tuning.
        warmup_steps: updates of the warm-up, which ends at the first milestone or before; 0 = no warm-up.
        start: learning rate at step 0 of a warm-up.

    Raises:
        ValueError: if ``step`` is negative, the milestones are not ascending, or the warm-up exceeds the first one.
    """
    _check_step(step)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones={list(milestones)}: expected ascending steps; sort them")
    if not 0 <= warmup_steps <= min(milestones, default=warmup_steps):
        raise ValueError(
            f"warmup_steps={warmup_steps}, milestones={list(milestones)}: expected a warm-up that is over at the first"
            " milestone; shorten the warm-up or move the milestones"
        )
    if step < warmup_steps:
        return _between(start, initial, step / warmup_steps)
    return initial * gamma ** bisect_right(milestones, step)


def epochs_to_steps(epochs: float, *, steps_per_epoch: int) -> int:
    """Convert epochs to the nearest number of steps.

    Fractions of epochs are allowed; half a step rounds up.

    Raises:
        ValueError: if ``epochs`` is negative or ``steps_per_epoch`` is below 1.
    """
    if epochs < 0:
        raise ValueError(f"epochs={epochs}: expected at least 0; raise it")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: expected at least 1; lower the batch size or add data")
    return math.floor(epochs * steps_per_epoch + 0.5)


def build_schedules(
    groups: Mapping[str, ScheduleSettings], *, total_steps: int, steps_per_epoch: int
) -> dict[str, LearningRateSchedule]:
    """Return each group's learning rate as a function of the step.

    Args:
        groups: the config's ``optim.groups``, by name; their durations are in epochs.
        total_steps: steps of the whole training.
        steps_per_epoch: steps of an epoch.

    Raises:
        ValueError: if a schedule does not fit into the training; the message names its key.
    """
    schedules = {}
    for name, settings in groups.items():
        schedule = _schedule(settings, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        try:
            schedule(0)
        except ValueError as error:
            raise ValueError(f"optim.groups.{name}: {error}") from None
        schedules[name] = schedule
    return schedules


def _schedule(settings: ScheduleSettings, *, total_steps: int, steps_per_epoch: int) -> LearningRateSchedule:
    def steps(epochs: float) -> int:
        return epochs_to_steps(epochs, steps_per_epoch=steps_per_epoch)

    if isinstance(settings, ConstantSettings):
        return partial(constant, value=settings.value)
    if isinstance(settings, WarmupCosineSettings):
        return partial(
            warmup_cosine,
            total_steps=total_steps,
            warmup_steps=steps(settings.warmup_epochs),
            peak=settings.peak,
            final=settings.final,
            start=settings.start,
        )
    return partial(
        steps_decay,
        initial=settings.initial,
        gamma=settings.gamma,
        milestones=[steps(epoch) for epoch in settings.milestone_epochs],
        warmup_steps=steps(settings.warmup_epochs),
        start=settings.start,
    )


def _between(low: float, high: float, weight: float) -> float:
    # low + weight * (high - low) would differ from `high` by a rounding error at weight 1.
    return (1.0 - weight) * low + weight * high


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step={step}: expected at least 0, the first update; count from 0")
