"""Initial weights that depend on the seed and on each parameter's name, and on nothing else.

Every parameter is drawn from a generator of its own. Neither the global random state, nor the order in which
modules were built, nor the device, nor the presence of other modules changes it: two methods that share a
backbone and a seed start from the same backbone.

The paper is silent on initialisation. Chosen by us, as the field does: convolutions Kaiming normal over the
fan-out for ReLU (He et al. 2015, torchvision's ResNet), normalisations weight 1 and bias 0, linear layers
PyTorch's default (uniform within 1/sqrt(fan-in), weight and bias alike). The last normalisation of a residual
block is not set to zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from crisscross.utils.rng import derive_key


@torch.no_grad()
def initialise(module: nn.Module, *, seed_key: int) -> None:
    """Give every parameter of ``module`` its initial value in place, and reset the running statistics.

    Call it before wrapping in ``DistributedDataParallel`` or ``torch.compile``, which prefix the names.

    Args:
        module: the tree; names are taken relative to it, as in ``module.named_parameters()``. A part
            initialised by itself therefore differs from the same part initialised inside its parent.
        seed_key: the seed, or a key derived from it.

    Raises:
        ValueError: a module holds parameters for which no rule is known; names it.
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
    """Draw one parameter on the CPU in single precision, so that devices and dtypes agree."""
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
        f"parameter {prefix}{name} of a {type(part).__name__}: expected a convolution, a normalisation or "
        "a linear layer; add a rule for it in crisscross/models/init.py"
    )
