"""What a pretraining method is: the one interface between the methods and everything else.

A method is one file in this folder and one file in ``experiments/conf/method``. The file defines a class ``Method``, a
subclass of ``BaseMethod``; the config's ``name`` is the file's name. Nothing else needs to know.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crisscross.methods import available_methods
from crisscross.models.backbones import Backbones
from crisscross.models.initialisation import initialise
from crisscross.settings import ModelSettings


@dataclass(frozen=True)
class Views:
    """A batch of augmented views, ready for the networks.

    Attributes:
        video: (V, B, 3, T, H, W), normalised; None where nothing but sound is used.
        audio: (V, B, 1, F, T), normalised log-mel; None where nothing but pictures are used.
        clip_ids: (B,), rows of the manifest.
        labels: (B,), class indices; self-supervised methods leave them alone.
        epoch: epoch of the batch.
    """

    video: torch.Tensor | None
    audio: torch.Tensor | None
    clip_ids: torch.Tensor
    labels: torch.Tensor
    epoch: int


class Trainable(nn.Module, ABC):
    """What the training loop trains: views in, a loss out.

    Attributes:
        num_views: views of a clip that ``forward`` wants, 1 or 2.
        uses_all_parameters: whether every parameter gets a gradient in every step (distributed training asks).
    """

    num_views = 2
    uses_all_parameters = True

    @abstractmethod
    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss (a scalar to minimise) and scalars to log, by metric name."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the name of their schedule in ``optim``: ``base``, or ``predictor``."""
        return {"base": list(self.parameters())}


class BaseMethod(Backbones, Trainable):
    """A pair of backbones, which stay when training is over, and a way of training them."""


def build_method(settings: Mapping[str, Any], model: ModelSettings, *, seed: int) -> BaseMethod:
    """Build the method that the config names, with weights that depend on the seed alone.

    Args:
        settings: the config's ``method`` node; ``name`` is the file, the rest goes to the class as keywords.
        model: sizes of backbones and heads.
        seed: the experiment's seed.

    Raises:
        ValueError: when there is no such method, listing those there are.
    """
    options = dict(settings)
    name = options.pop("name")
    if name not in available_methods():
        raise ValueError(f"method.name={name} is unknown: choose one of {', '.join(available_methods())}")
    method = importlib.import_module(f"crisscross.methods.{name}").Method(model, **options)
    initialise(method, seed_key=seed)
    return method
