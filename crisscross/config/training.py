"""Settings of the training loop: length, batch and precision (as in the paper)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from crisscross.config.base import Settings
from crisscross.config.optim import OptimSettings


class TrainingSettings(Settings):
    """Length, batch and precision of a training."""

    epochs: int = Field(ge=0)
    draws_per_clip: int = Field(gt=0)  # samples drawn from each clip per epoch
    global_batch_size: int = Field(gt=1)  # samples per optimizer step, over all devices
    micro_batch_size: int | None = Field(default=None, gt=1)  # samples per forward pass, over all devices; null = all
    precision: Literal["fp32", "bf16", "fp16"]  # fp16 uses a gradient scaler
    compile: bool  # torch.compile, on GPUs
    keep_epochs: tuple[int, ...]  # epochs whose checkpoint is kept; the last epoch's always is

    @property
    def samples_per_pass(self) -> int:
        """Samples in one forward pass, over all devices."""
        return self.micro_batch_size or self.global_batch_size

    @property
    def accumulation_passes(self) -> int:
        """Forward passes in one optimizer step."""
        return self.global_batch_size // self.samples_per_pass

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingSettings:
        if self.global_batch_size % self.samples_per_pass:
            raise ValueError(
                f"training.micro_batch_size={self.micro_batch_size} does not divide"
                f" training.global_batch_size={self.global_batch_size}: choose a divisor"
            )
        return self


def ignored_epochs(training: TrainingSettings, optim: OptimSettings, *, above: str = "") -> list[str]:
    """Return one line for each setting with an epoch past the end.

    Args:
        training: settings of the training.
        optim: settings of its optimizer.
        above: the prefix of their keys in the config, such as ``downstream.``.
    """
    named = {f"{above}training.keep_epochs": [(epoch, epoch > training.epochs) for epoch in training.keep_epochs]}
    for name, schedule in optim.groups.items():
        key = f"{above}optim.groups.{name}.milestone_epochs"
        named[key] = [(epoch, epoch >= training.epochs) for epoch in getattr(schedule, "milestone_epochs", ())]
    lines = []
    for key, epochs in named.items():
        beyond = [f"{epoch:g}" for epoch, is_beyond in epochs if is_beyond]
        if beyond and training.epochs:
            shown = ",".join(f"{epoch:g}" for epoch, _ in epochs)
            lines.append(
                f"{key}=[{shown}]: {', '.join(beyond)} will not be reached, as {above}training.epochs="
                f"{training.epochs}: leave out what is beyond, or raise {above}training.epochs"
            )
    return lines


def check_training(training: TrainingSettings, optim: OptimSettings, *, num_devices: int) -> None:
    """Check that the settings of a training fit together.

    Raises:
        ValueError: if a warm-up is as long as the training, or the devices cannot share a batch equally.
    """
    for name, schedule in optim.groups.items():
        warmup = getattr(schedule, "warmup_epochs", 0)
        if training.epochs and warmup >= training.epochs:
            raise ValueError(
                f"optim.groups.{name}.warmup_epochs={warmup:g} leaves nothing of"
                f" training.epochs={training.epochs}: lower the first or raise the second"
            )
    if training.samples_per_pass % num_devices:
        raise ValueError(
            f"a pass of {training.samples_per_pass} samples cannot be shared by"
            f" execution.num_devices={num_devices}: choose a divisor"
        )
    if training.samples_per_pass // num_devices < 2:
        raise ValueError(
            f"execution.num_devices={num_devices} leaves {training.samples_per_pass // num_devices} sample per device:"
            " batch norm needs 2: lower execution.num_devices"
        )
