"""Build the optimizer of the config's ``optim`` node and set the learning rates of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from crisscross.config.optim import OptimSettings
from crisscross.optim.larc import register_larc
from crisscross.optim.schedules import LearningRateSchedule


def build_optimizer(settings: OptimSettings, groups: Mapping[str, Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """Build Adam or SGD over named groups of parameters, optionally with LARC.

    Args:
        settings: the ``optim`` node.
        groups: parameters by the name of their schedule.

    Raises:
        ValueError: if a group has no schedule of its name.
    """
    for name in groups:
        if name not in settings.groups:
            raise ValueError(f"optim.groups.{name} is missing: the network trains such a group, give it a schedule")
    named = [{"params": list(parameters), "name": name, "lr": 0.0} for name, parameters in groups.items()]
    optimizer: torch.optim.Optimizer
    if settings.name == "adam":
        optimizer = torch.optim.Adam(named, betas=settings.betas, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.SGD(named, momentum=settings.momentum, weight_decay=settings.weight_decay)
    if settings.larc.enabled:
        register_larc(optimizer, trust=settings.larc.trust, eps=settings.larc.eps)
    return optimizer


def set_learning_rates(
    optimizer: torch.optim.Optimizer, schedules: Mapping[str, LearningRateSchedule], step: int
) -> dict[str, float]:
    """Set the learning rate of each group; return them as ``optim/lr_<group>``."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = schedules[group["name"]](step)
        rates[f"optim/lr_{group['name']}"] = group["lr"]
    return rates
