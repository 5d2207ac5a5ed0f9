"""Heads: projector and predictor (as in the paper), MLP, and classifier.

Every linear layer has a bias, also before batch normalization, where it has no effect. This reproduces the paper's
49.66 M for the whole model:

| part | parameters |
| --- | --- |
| video backbone | 15,379,136 |
| audio backbone | 11,170,240 |
| projector | 9,455,616, twice |
| predictor | 2,100,736, twice |
| whole model | 49,662,080 |

Without biases in the projectors, or with a last batch normalization without weight and bias, the total would round to
49.65 M. The predictors' first bias is too small to matter for the total (49.66 M either way); they have one because it
is the default of ``nn.Linear`` (ours).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projector(input_dim: int, *, hidden_dim: int = 2048, output_dim: int = 2048, num_layers: int = 3) -> nn.Sequential:
    """Build a projector: linear layers with batch normalization, and ReLU between them.

    Args:
        input_dim: the backbone's ``feature_dim``.
        hidden_dim: width of the hidden layers.
        output_dim: width of the embedding z.
        num_layers: number of linear layers, at least 1 (the paper has 3).

    Returns:
        A module that maps (B, input_dim) to (B, output_dim).

    Raises:
        ValueError: if a number is below 1.
    """
    _check_positive(input_dim=input_dim, hidden_dim=hidden_dim, output_dim=output_dim, num_layers=num_layers)
    dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
    layers: list[nn.Module] = []
    for before, after in pairwise(dims):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def predictor(dim: int, *, hidden_dim: int = 512) -> nn.Sequential:
    """Build a predictor: linear, BN, ReLU, linear; nothing after the second.

    Args:
        dim: width of the embedding z, and of the prediction p.
        hidden_dim: width of the hidden layer (a bottleneck in the paper).

    Returns:
        A module that maps (B, dim) to (B, dim).

    Raises:
        ValueError: if a number is below 1.
    """
    _check_positive(dim=dim, hidden_dim=hidden_dim)
    return nn.Sequential(nn.Linear(dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))


def mlp(input_dim: int, dims: Sequence[int], *, batch_norm: bool = False) -> nn.Sequential:
    """Build an MLP: linear layers with ReLU between them (AVID's head).

    Args:
        input_dim: the backbone's ``feature_dim``.
        dims: output width of each linear layer; the last one is the width of the embedding.
        batch_norm: whether a batch normalization follows each linear layer.

    Returns:
        A module that maps (B, input_dim) to (B, dims[-1]).

    Raises:
        ValueError: if a number is below 1, or there is no layer.
    """
    _check_positive(input_dim=input_dim, num_layers=len(dims), **{f"dims[{i}]": width for i, width in enumerate(dims)})
    layers: list[nn.Module] = []
    for before, after in pairwise([input_dim, *dims]):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else []), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def classifier(
    input_dim: int, num_classes: int, *, hidden_dim: int | None = None, batch_norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    """Build the head of fine-tuning (as in the paper).

    A linear layer, and optional layers before it.

    Args:
        input_dim: the backbone's ``feature_dim``.
        num_classes: number of logits.
        hidden_dim: width of a hidden linear layer with batch normalization and ReLU; None = no hidden layer.
        batch_norm: whether a batch normalization precedes the last layer.
        dropout: dropout probability before the last layer; 0 = off.

    Returns:
        A module that maps (B, input_dim) to logits (B, num_classes).

    Raises:
        ValueError: if a number is below 1.
    """
    _check_positive(input_dim=input_dim, num_classes=num_classes, hidden_dim=1 if hidden_dim is None else hidden_dim)
    layers: dict[str, nn.Module] = {}
    width = input_dim
    if hidden_dim is not None:
        width = hidden_dim
        hidden = [nn.Linear(input_dim, width), nn.BatchNorm1d(width), nn.ReLU()]
        layers["hidden"] = nn.Sequential(*hidden)
    if batch_norm:
        layers["norm"] = nn.BatchNorm1d(width)
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["linear"] = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(layers))


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value!r}: expected at least 1; raise it")
