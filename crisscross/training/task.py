"""What the one training loop is given: pretraining is a task, fine-tuning is another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from crisscross.data.loader import Clips
from crisscross.methods.base import Trainable
from crisscross.settings import ExecutionSettings, TrackingSettings, ViewSettings
from crisscross.training.settings import OptimSettings, TrainingSettings

Trained = TypeVar("Trained", bound=Trainable, covariant=True)
"""The kind of network."""


@dataclass(frozen=True)
class Task(Generic[Trained]):
    """What is trained, on what, and how. What becomes of it afterwards is its owner's affair.

    Attributes:
        phase: what the progress bar calls it, such as ``pretraining``.
        network: turns views into a loss; with its initial weights, on the CPU.
        clips: what it learns from.
        views: lengths and augmentations of the views.
        relaxation: where the two views of a clip start.
        modalities: ``v``, ``a`` or ``av``: what is decoded.
        optim: the optimiser and its schedules.
        training: epochs, draws, batch, precision.
        execution: devices, loaders, how often to save.
        tracking: how often to record.
        seed: of the order of the clips, the views, their augmentation, and what the network draws.
        node: where the config has ``training``, for complaints.
    """

    phase: str
    network: Trained
    clips: Clips
    views: ViewSettings
    relaxation: str
    modalities: str
    optim: OptimSettings
    training: TrainingSettings
    execution: ExecutionSettings
    tracking: TrackingSettings
    seed: int
    node: str = "training"
