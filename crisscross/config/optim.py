"""Settings of the optimizer and its learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from crisscross.config.base import Rate, Settings


class ConstantSettings(Settings):
    """The same learning rate at every step."""

    name: Literal["constant"]
    value: float = Field(ge=0, allow_inf_nan=False)


class WarmupCosineSettings(Settings):
    """A linear rise from ``start`` to ``peak``, then half a cosine down to ``final`` at the end of the training."""

    name: Literal["warmup_cosine"]
    peak: float = Field(ge=0, allow_inf_nan=False)
    final: float = Field(ge=0, allow_inf_nan=False)
    warmup_epochs: float = Field(ge=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class StepsDecaySettings(Settings):
    """``initial``, multiplied by ``gamma`` at each milestone, after a linear rise from ``start`` where there is one."""

    name: Literal["steps_decay"]
    initial: float = Field(ge=0, allow_inf_nan=False)
    gamma: float = Field(ge=0, allow_inf_nan=False)
    milestone_epochs: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)


ScheduleSettings = Annotated[
    ConstantSettings | WarmupCosineSettings | StepsDecaySettings,
    Field(discriminator="name"),
]
"""Any of them, told apart by ``name`` (crisscross/optim/schedules.py)."""


class LarcSettings(Settings):
    """Layer-wise adaptive rate clipping."""

    enabled: bool
    trust: float = Field(gt=0)
    eps: float = Field(ge=0)


class OptimSettings(Settings):
    """The optimizer, and one schedule for each group of parameters that the network names (crisscross/optim)."""

    name: Literal["adam", "sgd"]
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    momentum: Rate = 0.9
    weight_decay: float = Field(ge=0)
    larc: LarcSettings
    groups: dict[str, ScheduleSettings]

    @model_validator(mode="after")
    def _milestones_ascend(self) -> OptimSettings:
        for name, schedule in self.groups.items():
            if not isinstance(schedule, StepsDecaySettings):
                continue
            milestones, warmup = [*schedule.milestone_epochs], schedule.warmup_epochs
            key = f"optim.groups.{name}.milestone_epochs=[{','.join(f'{epoch:g}' for epoch in milestones)}]"
            if milestones != sorted(milestones):
                raise ValueError(f"{key}: expected ascending epochs; sort them")
            if milestones and warmup > milestones[0]:
                raise ValueError(
                    f"{key}: expected a warm-up that is over at the first milestone, warmup_epochs={warmup:g}; shorten"
                    " the warm-up or move the milestones"
                )
        return self
