"""Initial weights depend only on the seed and the name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.heads import predictor, projector
from crisscross.models.init import initialize
from crisscross.models.r2plus1d import VideoBackbone


def small_model(*, with_predictor: bool = False) -> nn.ModuleDict:
    parts = {
        "video": VideoBackbone(10, 4),
        "audio": AudioBackbone(4),
        "projector": projector(32, hidden_dim=16),
    }
    if with_predictor:
        # First, so that it would shift a shared random stream.
        parts = {"predictor": predictor(16, hidden_dim=8), **parts}
    return nn.ModuleDict(parts)


def test_same_seed_same_weights_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = small_model()
    initialize(first, seed_key=7)
    torch.manual_seed(2)
    second = small_model()
    initialize(second, seed_key=7)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_global_random_state_does_not_change() -> None:
    model = small_model()
    before = torch.get_rng_state()
    initialize(model, seed_key=7)
    assert torch.equal(before, torch.get_rng_state())


def test_another_head_does_not_change_the_backbone() -> None:
    alone, joined = small_model(), small_model(with_predictor=True)
    initialize(alone, seed_key=7)
    initialize(joined, seed_key=7)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, joined.state_dict()[name]), name


def test_seed_and_name_both_matter() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    initialize(model, seed_key=0)
    assert not torch.equal(model["a"].weight, model["b"].weight)
    before = model["a"].weight.clone()
    initialize(model, seed_key=1)
    assert not torch.equal(before, model["a"].weight)


def test_distributions() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv3d(32, 64, (1, 3, 3), stride=2),
            "linear": nn.Linear(400, 300),
            "bn": nn.BatchNorm1d(8),
        }
    )
    nn.init.uniform_(model["bn"].weight)
    model["bn"].running_mean.fill_(3.0)
    initialize(model, seed_key=3)
    weight = model["conv"].weight
    expected_std = math.sqrt(2 / (64 * 9))  # fan-out counts output channels and kernel, not the stride
    assert weight.std().item() == pytest.approx(expected_std, rel=0.02)
    assert abs(weight.mean().item()) < 4 * expected_std / math.sqrt(weight.numel())
    assert torch.equal(model["conv"].bias, torch.zeros(64))
    for value in (model["linear"].weight, model["linear"].bias):
        assert value.abs().max().item() <= 1 / 20
        assert value.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.1)
    assert torch.equal(model["bn"].weight, torch.ones(8))
    assert torch.equal(model["bn"].bias, torch.zeros(8))
    assert torch.equal(model["bn"].running_mean, torch.zeros(8))


def test_precision_does_not_change_the_draws() -> None:
    single, double = nn.Linear(4, 4), nn.Linear(4, 4).double()
    initialize(single, seed_key=0)
    initialize(double, seed_key=0)
    assert torch.equal(single.weight.double(), double.weight)


def test_gradients_still_flow() -> None:
    model = nn.Linear(4, 4)
    initialize(model, seed_key=0)
    model(torch.ones(1, 4)).sum().backward()
    assert model.weight.requires_grad
    assert model.weight.grad is not None


def test_a_module_without_a_rule_is_named() -> None:
    model = nn.ModuleDict({"text": nn.Embedding(3, 4)})
    with pytest.raises(ValueError, match=r"parameter text\.weight of a Embedding: expected a convolution"):
        initialize(model, seed_key=0)
