"""What a pretraining method is: the one interface between the methods and everything else.

A method is one file in this folder and one file in ``experiments/conf/method``. The file defines a class ``Method``, a
subclass of ``BaseMethod``; the config's ``name`` is the file's name. Nothing else needs to know; a class in
crisscross/config/method.py
lets a launch check the numbers before anything runs.
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
from crisscross.models.backbones import Backbones
from crisscross.models.init import initialise


@dataclass(frozen=True)
class Views:
    """A batch of augmented views, ready for the networks.

    Attributes:
        video: (V, B, 3, T, H, W), normalised; None where nothing but sound is used.
        audio: (V, B, 1, F, T), normalised log-mel; None where nothing but pictures are used.
        clip_ids: (B,), rows of the training split: 0 ... number of clips - 1.
        labels: (B,), class indices; self-supervised methods leave them alone.
        epoch: epoch of the batch.
        key: seed of draws that all processes must make alike, another in every forward pass. (Draws of a process's own
            need none: the global generator is seeded before every pass.)
    """

    video: torch.Tensor | None
    audio: torch.Tensor | None
    clip_ids: torch.Tensor
    labels: torch.Tensor
    epoch: int
    key: int = 0

    def of(self, modality: str) -> torch.Tensor:
        """Return the views of ``video`` or ``audio``, one of those that the network has among its ``modalities``."""
        views = self.video if modality == "video" else self.audio
        assert views is not None  # the network's modalities are decoded
        return views

    def generator(self) -> torch.Generator:
        """Return a generator for draws that all processes make alike, on the device of the views."""
        return torch.Generator(self.clip_ids.device).manual_seed(self.key)


FeaturesOfAll = Callable[[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]], dict[str, Callable[[], np.ndarray]]]
"""From networks by modality, ``v`` or ``a``, to what reads the features of every training clip, (N, D), from disk.

Every process has to ask; which of them read what was found is their affair (it is large). The features are alike.
"""


class Trainable(nn.Module, ABC):
    """What the training loop trains: views in, a loss out.

    Attributes:
        num_views: views of a clip that ``forward`` wants, 1 or 2.
        modalities: ``v``, ``a`` or ``av``: what of a clip it wants.
        uses_all_parameters: whether every parameter gets a gradient in every step (distributed training asks).
        needs_epoch_start: whether ``on_epoch_start`` does anything; a checkpoint is then kept at the end of each epoch.
        custom_sampling: whether ``epoch_indices`` does anything.
        replicated_buffers: names of buffers that every process changes in the same way by itself. Checkpoints hold them
            like all buffers; distributed training does not synchronize them.
    """

    num_views = 2
    modalities = "av"
    uses_all_parameters = True
    needs_epoch_start = False
    custom_sampling = False
    replicated_buffers: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss (a scalar to minimise) and scalars to log, by metric name."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the name of their schedule in ``optim``: ``base``, or ``predictor``."""
        return {"base": list(self.parameters())}

    def on_epoch_start(self, epoch: int, features_of_all: FeaturesOfAll, *, seed: int) -> Iterable[nn.Parameter]:
        """Get ready for an epoch, on every process; what is kept of it has to be in buffers.

        A run that is stopped in an epoch goes on without this call, one that is stopped in the call makes it again.

        Args:
            epoch: the one that begins.
            features_of_all: looks at every training clip.
            seed: of this epoch's draws.

        Returns:
            The parameters that begin anew: what the optimiser remembers of them (momentum, say) is forgotten.
        """
        return ()

    def epoch_indices(self, num_samples: int, *, seed: int) -> np.ndarray:
        """Return the clip of each sample of the epoch that has begun, (num_samples,), in their order.

        It may depend on buffers that ``on_epoch_start`` alone changes and on the seed, nothing else.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Do what has to be done when the optimiser has taken a step."""


class BaseMethod(Backbones, Trainable):
    """Backbones, which stay when training is over, and a way of training them.

    ``Method(model, clips, **options)`` is how it is built; options are the rest of the config's ``method``.
    """

    def __init__(self, model: ModelSettings) -> None:
        """Build the backbones of what the method looks at and listens to."""
        super().__init__(model, modalities=self.modalities)

    def initialise_state(self, *, seed: int) -> None:
        """Give buffers that are drawn their first values, the same on every process; parameters have theirs by then."""


def build_method(settings: Mapping[str, Any], model: ModelSettings, clips: DatasetInfo, *, seed: int) -> BaseMethod:
    """Build the method that the config names, with weights that depend on the seed alone.

    Args:
        settings: the config's ``method`` node; ``name`` is the file, the rest goes to the class as keywords.
        model: sizes of backbones and heads.
        clips: what it will learn from.
        seed: the experiment's seed.

    Raises:
        ValueError: when there is no such method, listing those there are, or the clips do not suit it.
    """
    known = settings_of(settings)
    if known is not None:
        known.check_clips(num_clips=clips.num_clips, num_classes=clips.num_classes)
    options = dict(settings)
    name = options.pop("name")
    if name not in method_names():
        raise ValueError(f"method.name={name} is unknown: choose one of {', '.join(method_names())}")
    method = importlib.import_module(f"crisscross.methods.{name}").Method(model, clips, **options)
    initialise(method, seed_key=seed)
    method.initialise_state(seed=seed)
    return method
