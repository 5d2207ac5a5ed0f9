"""The linear probe (as in the paper): one linear layer on frozen features."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from crisscross.config.evaluation import LinearSettings
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.utils.files import write_atomically
from crisscross.utils.rng import derive_key, generator
from crisscross.utils.signals import SHUTDOWN, raise_if_preempted

logger = logging.getLogger(__name__)
CPU = torch.device("cpu")


def evaluate_linear(
    train: FeatureMatrix,
    test: FeatureMatrix,
    *,
    num_classes: int,
    settings: LinearSettings,
    seed: int,
    device: torch.device = CPU,
    state_path: Path | None = None,
    keep_minutes: float = 10.0,
) -> np.ndarray:
    """Train on the training split and score the test split.

    The rows of a step and its dropout depend only on seed, epoch and step, so that a resumed training gives the same
    result as one that was never stopped.

    Args:
        train: the training clips; each segment is a row.
        test: the test clips.
        num_classes: K.
        settings: the protocol.
        seed: of the layer's initial weights, the order of the rows, and dropout.
        device: where to compute.
        state_path: file for the state of the training, written at a preemption signal, every ``keep_minutes``, and at
            the end; None = no file.
        keep_minutes: minutes between two writes of that file.

    Returns:
        (N, K) float64: probabilities of the test clips, averaged over their segments.

    Raises:
        Preempted: if a signal asked the job to stop; between two epochs.
    """
    moments = train.moments() if settings.standardise else (np.zeros(train.dim), np.ones(train.dim))
    mean, std = (torch.from_numpy(x).float().to(device) for x in moments)
    layer = _first_weights(train.dim, num_classes, seed).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    last_kept = time.monotonic()
    for epoch in range(_resume(state_path, layer, optimizer), settings.epochs):
        if SHUTDOWN.requested or time.monotonic() - last_kept > 60 * keep_minutes:
            _keep(state_path, layer, optimizer, epoch)
            last_kept = time.monotonic()
        raise_if_preempted()
        for step, rows in enumerate(_order(len(train), settings.batch_size, seed=seed, epoch=epoch)):
            features, labels = train.at_rows(rows)
            torch.manual_seed(derive_key(seed, "linear/dropout", epoch, step))
            x = (torch.from_numpy(features).to(device) - mean) / std
            loss = F.cross_entropy(
                layer(F.dropout(x, settings.dropout, training=settings.dropout > 0)),
                torch.from_numpy(labels).to(device),
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    _keep(state_path, layer, optimizer, settings.epochs)  # in case another fold or modality is interrupted
    return _probabilities(layer, test, mean, std)


def _first_weights(dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a layer with orthogonal weights, as in the paper; zero bias."""
    torch.manual_seed(derive_key(seed, "linear/weights"))
    layer = nn.Linear(dim, num_classes)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _order(num_rows: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the row indices of each step of an epoch."""
    order = generator(seed, "linear/shuffle", epoch).permutation(num_rows)
    for first in range(0, num_rows, batch_size):
        yield order[first : first + batch_size]


@torch.inference_mode()
def _probabilities(layer: nn.Linear, test: FeatureMatrix, mean: torch.Tensor, std: torch.Tensor) -> np.ndarray:
    found = []
    for block, _ in test.blocks():
        logits = layer((torch.from_numpy(block).to(mean.device) - mean) / std)
        found.append(logits.double().softmax(dim=1).cpu().numpy())
    return np.concatenate(found).reshape(len(test.clips), test.num_segments, -1).mean(axis=1)


def _keep(path: Path | None, layer: nn.Linear, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    if path is not None:
        state = {"epoch": epoch, "layer": layer.state_dict(), "optimizer": optimizer.state_dict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(state, file))


def _resume(path: Path | None, layer: nn.Linear, optimizer: torch.optim.Optimizer) -> int:
    """Load a stopped training, if any, and return the next epoch."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    layer.load_state_dict(state["layer"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resuming at epoch %d", state["epoch"])
    return state["epoch"]
