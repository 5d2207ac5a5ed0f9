"""Settings of the optimizer and its learning-rate schedules (as in the paper)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from crisscross.config.base import Rate, Settings


class ConstantSettings(Settings):
    """A constant learning rate."""

    name: Literal["constant"]
    value: float = Field(ge=0, allow_inf_nan=False)  # the learning rate


class WarmupCosineSettings(Settings):
    """Linear warm-up from ``start`` to ``peak``, then a cosine to ``final``."""

    name: Literal["warmup_cosine"]
    peak: float = Field(ge=0, allow_inf_nan=False)  # learning rate after the warm-up
    final: float = Field(ge=0, allow_inf_nan=False)  # learning rate at the end of the training
    warmup_epochs: float = Field(ge=0, allow_inf_nan=False)  # length of the warm-up
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # learning rate at the first step of the warm-up


class StepsDecaySettings(Settings):
    """Linear warm-up from ``start`` to ``initial``; each milestone multiplies by ``gamma``."""

    name: Literal["steps_decay"]
    initial: float = Field(ge=0, allow_inf_nan=False)  # learning rate before the first milestone
    gamma: float = Field(ge=0, allow_inf_nan=False)  # factor at each milestone
    milestone_epochs: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]  # in ascending order
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # length of the warm-up; 0 = none
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # learning rate at the first step of the warm-up


ScheduleSettings = Annotated[
    ConstantSettings | WarmupCosineSettings | StepsDecaySettings,
    Field(discriminator="name"),
]
"""Any schedule; ``name`` selects the class (crisscross/optim/schedules.py)."""


class LarcSettings(Settings):
    """Layer-wise adaptive rate clipping (crisscross/optim/larc.py)."""

    enabled: bool
    trust: float = Field(gt=0)  # trust coefficient; the paper's is 0.001
    eps: float = Field(ge=0)  # added to the denominator; the paper's is 1e-8


class OptimSettings(Settings):
    """The optimizer and the schedules of its parameter groups (crisscross/optim)."""

    name: Literal["adam", "sgd"]
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # Adam only; the paper's
    momentum: Rate = 0.9  # SGD only; the paper's, in fine-tuning
    weight_decay: float = Field(ge=0)
    larc: LarcSettings
    groups: dict[str, ScheduleSettings]  # schedule of each parameter group: base, predictor

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
