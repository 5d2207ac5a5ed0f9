"""Settings of execution and tracking; none is part of an experiment's identity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crisscross.config.base import Settings


class TrackingSettings(Settings):
    """Where runs are recorded (crisscross/tracking)."""

    uri: str  # MLflow's tracking URI: sqlite:///FILE or http://HOST:PORT
    experiment: str  # name of the MLflow experiment
    # direct: the job writes to MLflow; deferred: launch/sync.py and others do; auto: deferred for jobs sharing SQLite
    delivery: Literal["auto", "direct", "deferred", "off"]
    log_every_steps: int = Field(gt=0)  # steps between two lines of metrics


class ExecutionSettings(Settings):
    """How an experiment runs."""

    device: Literal["auto", "cpu", "cuda"]  # auto: a GPU if there is one
    num_devices: int = Field(gt=0)  # processes of distributed training
    num_workers: int = Field(ge=0)  # loader processes per device; 0 = decode in the training process
    num_threads: int = Field(gt=0)  # CPU threads per process
    checkpoint_minutes: float = Field(gt=0)  # minutes between two checkpoints
    max_steps_this_launch: int | None = Field(default=None, gt=0)  # stop after so many steps, resumably; null = never
