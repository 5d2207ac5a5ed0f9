"""The linear probe against a literal computation, and a training that is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crisscross.evaluation import linear_probe
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.linear_probe import evaluate_linear
from crisscross.evaluation.scores import top_k
from crisscross.utils.signals import SHUTDOWN, Preempted
from tests.evaluation.support import clusters, protocol, rows_of

TRAIN, LABELS = clusters(20, spread=1.0)
TEST, TEST_LABELS = clusters(12, spread=1.0, seed=1)


def _run(
    train: np.ndarray = TRAIN,
    test: np.ndarray = TEST,
    *,
    seed: int = 0,
    path: Path | None = None,
    **changes: Any,
) -> np.ndarray:
    return evaluate_linear(
        rows_of(train, LABELS),
        rows_of(test, TEST_LABELS),
        num_classes=4,
        settings=protocol("linear", **{"epochs": 4, "batch_size": 16, **changes}),
        seed=seed,
        state_path=path,
    )


@pytest.mark.parametrize("standardise", [True, False])
def test_a_short_training_equals_a_literal_one(standardise: bool) -> None:
    rate, decay, epochs, batch = 1e-2, 1e-3, 4, 16
    found = _run(
        standardise=standardise, learning_rate=rate, weight_decay=decay, epochs=epochs, batch_size=batch, dropout=0.0
    )

    x, y = TRAIN.reshape(-1, 16).astype(np.float64), LABELS.repeat(3)
    test = TEST.reshape(-1, 16).astype(np.float64)
    if standardise:
        mean, std = x.mean(axis=0), x.std(axis=0)
        x, test = (x - mean) / std, (test - mean) / std
    layer = linear_probe._first_weights(16, 4, 0)
    weight = np.concatenate([layer.weight.detach().numpy().astype(np.float64).T, np.zeros((1, 4))])
    x, test = (np.concatenate([part, np.ones((len(part), 1))], axis=1) for part in (x, test))
    momentum, square, step = np.zeros_like(weight), np.zeros_like(weight), 0
    for epoch in range(epochs):
        seen = []
        for rows in linear_probe._order(len(x), batch, seed=0, epoch=epoch):
            seen += rows.tolist()
            step += 1
            logits = x[rows] @ weight
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            gradient = x[rows].T @ (chances - np.eye(4)[y[rows]]) / len(rows) + decay * weight
            momentum = 0.9 * momentum + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            weight -= rate * (momentum / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        assert sorted(seen) == list(range(60))  # every row once, the last step has fewer
    logits = test @ weight
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(found, chances.reshape(12, 3, 4).mean(axis=1), atol=1e-4)


def test_scores_are_probabilities_averaged_over_the_segments() -> None:
    found = _run()
    assert found.shape == (12, 4)
    assert np.allclose(found.sum(axis=1), 1)
    alone = [_run(test=TEST[:, [segment]]) for segment in range(3)]
    assert np.allclose(found, np.mean(alone, axis=0), atol=1e-6)


def test_separable_classes_are_found() -> None:
    assert top_k(_run(epochs=40, learning_rate=1e-2), TEST_LABELS, 1) == 1.0


@pytest.mark.parametrize(("dim", "num_classes"), [(16, 4), (3, 8)])
def test_the_first_weights_are_orthogonal(dim: int, num_classes: int) -> None:
    layer = linear_probe._first_weights(dim, num_classes, 0)
    weight = layer.weight.detach().numpy().astype(np.float64)
    products = weight @ weight.T if num_classes <= dim else weight.T @ weight
    assert np.allclose(products, np.eye(min(dim, num_classes)), atol=1e-6)
    assert not layer.bias.any()
    assert not torch.equal(layer.weight, linear_probe._first_weights(dim, num_classes, 1).weight)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    one = _run(dropout=0.3)
    torch.manual_seed(2)
    assert np.array_equal(one, _run(dropout=0.3))
    assert not np.array_equal(one, _run(dropout=0.3, seed=1))
    assert not np.array_equal(one, _run(dropout=0.0))


def test_dropout_is_of_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = linear_probe.F.dropout

    def recorded(x: torch.Tensor, p: float, *, training: bool) -> torch.Tensor:
        calls.append((len(x), p, training))
        return original(x, p, training=training)

    monkeypatch.setattr(linear_probe.F, "dropout", recorded)
    _run(dropout=0.25, epochs=2)
    assert calls == [(size, 0.25, True) for size in (16, 16, 16, 12)] * 2


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(dropout=0.2)
    epochs = []
    original = linear_probe._order

    def order(*arguments: Any, epoch: int, **more: Any) -> Any:
        epochs.append(epoch)
        if len(epochs) == stop:
            monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGTERM")
        return original(*arguments, epoch=epoch, **more)

    monkeypatch.setattr(linear_probe, "_order", order)
    path = tmp_path / "features" / "linear.pt"
    with pytest.raises(Preempted, match="SIGTERM"):
        _run(dropout=0.2, path=path)
    monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    assert np.array_equal(_run(dropout=0.2, path=path), whole)
    assert epochs == [0, 1, 2, 3]  # none twice


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "linear.pt"
    whole = _run(path=path)
    monkeypatch.setattr(linear_probe, "_order", lambda *arguments, **more: pytest.fail("trained again"))
    assert np.array_equal(_run(path=path), whole)


def test_rows_on_disk_give_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.f32"
    file.write_bytes(TRAIN.tobytes())
    on_disk = FeatureMatrix((np.memmap(file, np.float32, "r", shape=TRAIN.shape),), np.arange(20), LABELS, 3)
    settings = protocol("linear", epochs=2, batch_size=16)
    found = evaluate_linear(on_disk, rows_of(TEST, TEST_LABELS), num_classes=4, settings=settings, seed=0)
    assert np.array_equal(found, _run(epochs=2))
