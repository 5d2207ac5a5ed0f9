"""Initial weights that depend only on the seed and each parameter's name.

Every parameter has its own generator. The global random state, the order in which modules are built, the device and
other modules do not matter: two methods with the same backbone and seed start from the same weights.

The paper does not specify the initialization. Ours, as is common: convolutions Kaiming normal over the fan-out for ReLU
(He et al. 2015, torchvision's ResNet), normalizations weight 1 and bias 0, linear layers PyTorch's default (weight and
bias uniform within 1/sqrt(fan-in)). The last normalization of a residual block is not set to zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from crisscross.utils.rng import derive_key


@torch.no_grad()
def initialize(module: nn.Module, *, seed_key: int) -> None:
    """Initialize all parameters of ``module`` in place, and reset running statistics.

    Call it before wrapping in ``DistributedDataParallel`` or ``torch.compile``, which prefix the names.

    Args:
        module: root module; names are relative to it, as in ``module.named_parameters()``. The values of a submodule
            therefore depend on whether it is initialized alone or as part of its parent.
        seed_key: the seed, or a key derived from it.

    Raises:
        ValueError: if there is no rule for a module's parameters; the message names the parameter.
    """
    for module_name, part in module.named_modules():
        parameters = dict(part.named_parameters(recurse=False))
        if isinstance(part, _NormBase):
            part.reset_running_stats()
        if not parameters:
            continue
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in parameters.items():
            generator = torch.Generator().manual_seed(derive_key(seed_key, f"weights/{prefix}{name}"))
            parameter.copy_(_initial_value(part, name, parameter, prefix=prefix, generator=generator))


def _initial_value(part: nn.Module, name: str, parameter: Tensor, *, prefix: str, generator: torch.Generator) -> Tensor:
    """Draw one parameter on the CPU in single precision."""
    values = torch.empty(parameter.shape, dtype=torch.float32)
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if name == "bias":
            return values.zero_()
        fan_out = part.weight.shape[0] * part.weight[0, 0].numel() / part.groups
        return values.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
    if isinstance(part, (_NormBase, nn.LayerNorm, nn.GroupNorm)):
        return values.fill_(1.0 if name == "weight" else 0.0)
    if isinstance(part, nn.Linear):
        bound = 1.0 / math.sqrt(part.in_features)
        return values.uniform_(-bound, bound, generator=generator)
    raise ValueError(
        f"parameter {prefix}{name} of a {type(part).__name__}: expected a convolution, a normalization or "
        "a linear layer; add a rule for it in crisscross/models/init.py"
    )
