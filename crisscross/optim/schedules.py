"""Learning-rate schedules: pure functions from the number of the update to its learning rate.

``step`` counts updates from 0; the update numbered ``step`` uses the value at ``step``. Durations are in
steps: the caller turns epochs into steps once, with ``epochs_to_steps``. A schedule has no state, so a
resumed run asks for the step it is at and gets what it would have got.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

LearningRateSchedule = Callable[[int], float]


def constant(step: int, *, value: float) -> float:
    """Return ``value`` at every step (the predictors' schedule, section 4 of PAPER.md).

    Raises:
        ValueError: ``step`` is negative.
    """
    _check_step(step)
    return value


def warmup_cosine(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float, start: float = 0.0
) -> float:
    """Rise linearly, then fall along half a cosine (backbones and projectors, section 4 of PAPER.md).

    Exactly ``start`` at step 0 (``peak`` when there is no warm-up), ``peak`` at ``warmup_steps`` and
    ``final`` at ``total_steps``, the moment after the last update (these exact places are chosen by us).

    Args:
        step: number of the update, from 0 to ``total_steps``.
        total_steps: updates of the whole training.
        warmup_steps: updates of the rise, less than ``total_steps``; 0 for none.
        peak: learning rate after the rise.
        final: learning rate at the end.
        start: learning rate at step 0.

    Raises:
        ValueError: ``step`` is outside the training, or the warm-up does not fit in it.
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
    """Multiply by ``gamma`` at each milestone (fine-tuning, section 5 of PAPER.md), after a linear rise if need be.

    Args:
        step: number of the update, from 0.
        initial: learning rate after the rise, before the first milestone.
        milestones: steps in ascending order; the update numbered as a milestone already has the lower rate.
        gamma: the factor, 0.3 in the paper's fine-tuning.
        warmup_steps: updates of the rise, which ends before the first milestone or at it; 0 for none.
        start: learning rate at step 0 of a rise.

    Raises:
        ValueError: ``step`` is negative, the milestones do not ascend, or the rise is not over at the first.
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


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "warmup_cosine": warmup_cosine,
    "steps_decay": steps_decay,
}


def schedule_from_config(config: Mapping[str, Any]) -> LearningRateSchedule:
    """Return the schedule that a config entry names, checked by asking it for step 0.

    Args:
        config: ``{"name": "warmup_cosine", "total_steps": ..., ...}``: the name and the function's arguments,
            durations already in steps.

    Returns:
        A function of the step alone; it can be pickled.

    Raises:
        ValueError: the name is unknown, an argument is missing or unknown, or a value is impossible.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in SCHEDULES:
        raise ValueError(f"schedule name={name!r}: expected one of {list(SCHEDULES)}; set one of these")
    parameters = dict(list(inspect.signature(SCHEDULES[name]).parameters.items())[1:])
    unknown = sorted(set(arguments) - set(parameters))
    missing = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in arguments
    ]
    if unknown or missing:
        raise ValueError(
            f"schedule {name}: unknown {unknown}, missing {missing}; expected the arguments {list(parameters)}"
        )
    schedule = partial(SCHEDULES[name], **arguments)
    schedule(0)
    return schedule


def epochs_to_steps(epochs: float, *, steps_per_epoch: int) -> int:
    """Turn a duration in epochs, fractions allowed, into whole steps (the nearest; a half goes up).

    Raises:
        ValueError: ``epochs`` is negative or ``steps_per_epoch`` is below 1.
    """
    if epochs < 0:
        raise ValueError(f"epochs={epochs}: expected at least 0; raise it")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: expected at least 1; lower the batch size or add data")
    return math.floor(epochs * steps_per_epoch + 0.5)


def build_schedules(
    groups: Mapping[str, Mapping[str, Any]], *, total_steps: int, steps_per_epoch: int
) -> dict[str, LearningRateSchedule]:
    """Return each group's learning rate as a function of the step; durations in epochs become steps here.

    Args:
        groups: the config's ``optim.groups``: by name of the group, a schedule's name and numbers.
        total_steps: steps of the whole training.
        steps_per_epoch: steps of an epoch.

    Raises:
        ValueError: when a schedule is impossible, naming its key.
    """
    schedules = {}
    for name, entry in groups.items():
        try:
            schedules[name] = schedule_from_config(_in_steps(entry, total_steps, steps_per_epoch))
        except (ValueError, TypeError) as error:
            raise ValueError(f"optim.groups.{name}: {error}") from None
    return schedules


def _in_steps(entry: Mapping[str, Any], total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return a schedule's numbers with ``*_epochs`` turned into ``*_steps`` (``milestone_epochs`` into milestones)."""

    def steps(epochs: float) -> int:
        return epochs_to_steps(epochs, steps_per_epoch=steps_per_epoch)

    arguments: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "milestone_epochs":
            arguments["milestones"] = [steps(item) for item in value]
        elif key.endswith("_epochs"):
            arguments[key.removesuffix("epochs") + "steps"] = steps(value)
        else:
            arguments[key] = value
    if entry.get("name") == "warmup_cosine":
        arguments["total_steps"] = total_steps
    return arguments


def _between(low: float, high: float, weight: float) -> float:
    # Not low + weight * (high - low), which misses `high` by a rounding at weight 1.
    return (1.0 - weight) * low + weight * high


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step={step}: expected at least 0, the first update; count from 0")
