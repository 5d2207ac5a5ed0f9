"""Settings of how an experiment runs and where its runs are recorded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crisscross.config.base import Settings


class TrackingSettings(Settings):
    """Where runs are recorded."""

    uri: str
    experiment: str
    delivery: Literal["auto", "direct", "deferred", "off"]
    log_every_steps: int = Field(gt=0)


class ExecutionSettings(Settings):
    """How an experiment runs."""

    device: Literal["auto", "cpu", "cuda"]
    num_devices: int = Field(gt=0)
    num_workers: int = Field(ge=0)
    num_threads: int = Field(gt=0)
    checkpoint_minutes: float = Field(gt=0)
    max_steps_this_launch: int | None = Field(default=None, gt=0)
