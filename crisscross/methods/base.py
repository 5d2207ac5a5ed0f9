"""The interface of a pretraining method.

A method is one file in this folder and one file in ``experiments/conf/method``. The Python file defines a subclass of
``BaseMethod`` under ``@register``; ``method.name`` in the config is the name of the file. An optional class in
crisscross/config/method.py checks the method's numbers at launch.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from crisscross.config.method import DatasetInfo, method_names, settings_of
from crisscross.config.model import ModelSettings
from crisscross.methods import REGISTRY
from crisscross.models.backbones import Backbones
from crisscross.models.init import initialize


@dataclass(frozen=True)
class Views:
    """A batch of augmented views, the input of a network.

    Attributes:
        video: (V, B, 3, T, H, W), normalized; None if only audio is used.
        audio: (V, B, 1, F, T), normalized log-mel; None if only video is used.
        clip_ids: (B,), rows of the training split: 0 ... number of clips - 1.
        labels: (B,), class indices; self-supervised methods ignore them.
        epoch: epoch of the batch.
        seed: seed of draws that are the same on all processes, different in every forward pass. (Draws that may differ
            between processes use the global generator, which is seeded before every pass.)
    """

    video: torch.Tensor | None
    audio: torch.Tensor | None
    clip_ids: torch.Tensor
    labels: torch.Tensor
    epoch: int
    seed: int = 0

    def of(self, modality: str) -> torch.Tensor:
        """Return the views of ``video`` or ``audio``, one of the network's ``modalities``."""
        views = self.video if modality == "video" else self.audio
        assert views is not None  # the loader decodes the network's modalities
        return views

    def generator(self) -> torch.Generator:
        """Return a generator with the same seed on all processes."""
        return torch.Generator(self.clip_ids.device).manual_seed(self.seed)


FeaturesOfAll = Callable[[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]], dict[str, Callable[[], np.ndarray]]]
"""Maps networks by modality, ``v`` or ``a``, to functions that read the features of all training clips, (N, D).

A collective: every process must call it. The features are the same on every process; they are large, so a process
reads them from disk only if it needs them.
"""


class Trainable(nn.Module, ABC):
    """A network for the training loop: maps views to a loss.

    Attributes:
        num_views: views of a clip that ``forward`` expects, 1 or 2.
        modalities: ``v``, ``a`` or ``av``: the streams of a clip that ``forward`` expects.
        uses_all_parameters: whether every parameter gets a gradient in every step (for DistributedDataParallel).
        needs_epoch_start: whether ``on_epoch_start`` is defined; a checkpoint is then saved at the end of each epoch.
        custom_sampling: whether ``epoch_indices`` is defined.
        replicated_buffers: names of buffers to which every process applies the same update. They are in checkpoints
            like all buffers; DistributedDataParallel does not broadcast them.
    """

    num_views = 2
    modalities = "av"
    uses_all_parameters = True
    needs_epoch_start = False
    custom_sampling = False
    replicated_buffers: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, a scalar to minimize, and metrics by name."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by their schedule in ``optim.groups``: ``base`` or ``predictor``."""
        return {"base": list(self.parameters())}

    def on_epoch_start(self, epoch: int, features_of_all: FeaturesOfAll, *, seed: int) -> Iterable[nn.Parameter]:
        """Prepare an epoch; called on every process.

        Results that must persist go into buffers. A run that is interrupted within an epoch resumes without this call;
        one that is interrupted within the call repeats it.

        Args:
            epoch: number of the epoch that starts.
            features_of_all: extracts features of all training clips.
            seed: seed of this epoch's draws.

        Returns:
            The parameters that were reset; their optimizer state (momentum, for example) is deleted.
        """
        return ()

    def epoch_indices(self, num_samples: int, *, seed: int) -> np.ndarray:
        """Return the clips of the current epoch's samples, (num_samples,), in order.

        The result may depend only on the seed and on buffers that only ``on_epoch_start`` changes.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Update state after an optimizer step."""


class BaseMethod(Backbones, Trainable):
    """Backbones, which are exported after training, and a loss that trains them.

    A subclass is built as ``Class(model, clips, **options)``; the options are the other keys of ``method``.
    """

    def __init__(self, model: ModelSettings) -> None:
        """Build the backbones of the method's modalities."""
        super().__init__(model, modalities=self.modalities)

    def initialize_state(self, *, seed: int) -> None:
        """Initialize buffers, the same on every process; parameters are already initialized."""


def build_method(settings: Mapping[str, Any], model: ModelSettings, clips: DatasetInfo, *, seed: int) -> BaseMethod:
    """Build the method of a config.

    Its weights depend only on the seed.

    Args:
        settings: the config's ``method`` node; ``name`` is the file, the other keys are keywords of the class.
        model: sizes of backbones and heads.
        clips: size of the training split.
        seed: the experiment's seed.

    Raises:
        ValueError: if there is no such method (the message lists the methods), or the clips do not suit it.
    """
    known = settings_of(settings)
    if known is not None:
        known.check_clips(num_clips=clips.num_clips, num_classes=clips.num_classes)
    options = dict(settings)
    name = options.pop("name")
    if name not in method_names():
        raise ValueError(f"method.name={name} is unknown: choose one of {', '.join(method_names())}")
    importlib.import_module(f"crisscross.methods.{name}")
    if name not in REGISTRY:
        raise ValueError(f"method.name={name}: its file registers no class: put @register before the class")
    method: BaseMethod = REGISTRY[name](model, clips, **options)
    initialize(method, seed_key=seed)
    method.initialize_state(seed=seed)
    return method
