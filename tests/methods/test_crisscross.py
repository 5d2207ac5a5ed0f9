"""CrissCross: the loss against a literal implementation, its weights, and its size."""

from __future__ import annotations

import math

import pytest
import torch

from crisscross.config.experiment import ModelSettings
from crisscross.config.method import method_names
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.methods.crisscross import LOSS_GROUP, embedding_std, pair_loss
from crisscross.models.backbones import random_init_backbones
from tests.methods.support import TINY

PAPER = ModelSettings(
    video={"depth": 18, "width": 64},
    audio={"layers": (2, 2, 2, 2), "width": 64},
    projector={"hidden_dim": 2048, "output_dim": 2048, "num_layers": 3},
    predictor={"hidden_dim": 512},
)
CLIPS = DatasetInfo(num_clips=12, num_classes=3)
ALL_ON = {"video_weight": 1.0, "audio_weight": 1.0, "sync_weight": 1.0, "async_weight": 1.0}
PAIRS = {"v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "v2a1"}


def _views(batch: int = 4) -> Views:
    generator = torch.Generator().manual_seed(0)
    return Views(
        video=torch.randn(2, batch, 3, 4, 16, 16, generator=generator),
        audio=torch.randn(2, batch, 1, 80, 64, generator=generator),
        clip_ids=torch.arange(batch),
        labels=torch.zeros(batch, dtype=torch.long),
        epoch=0,
    )


def _build(**weights: float):
    return build_method({"name": "crisscross", **ALL_ON, **weights}, TINY, CLIPS, seed=0)


def _literal_d(p: torch.Tensor, z: torch.Tensor) -> float:
    """Return D(p, z), one clip and one dimension at a time."""
    total = 0.0
    for row_p, row_z in zip(p.tolist(), z.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(row_p, row_z, strict=True))
        norms = math.sqrt(sum(a * a for a in row_p)) * math.sqrt(sum(b * b for b in row_z))
        total -= dot / norms
    return total / len(p)


def test_pair_loss_equals_the_equation() -> None:
    p_x, z_x, p_y, z_y = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    expected = _literal_d(p_x, z_y) / 2 + _literal_d(p_y, z_x) / 2
    assert pair_loss(p_x, z_x, p_y, z_y).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_stops_at_the_targets() -> None:
    p_x, z_x, p_y, z_y = (torch.randn(4, 8, requires_grad=True) for _ in range(4))
    pair_loss(p_x, z_x, p_y, z_y).backward()
    assert z_x.grad is None
    assert z_y.grad is None
    assert p_x.grad.abs().sum() > 0
    assert p_y.grad.abs().sum() > 0


def test_perfect_agreement_is_minus_one() -> None:
    z = torch.randn(5, 8)
    assert pair_loss(z, z, 3 * z, 2 * z).item() == pytest.approx(-1.0, abs=1e-6)


def test_total_is_the_mean_of_six_literal_pair_losses() -> None:
    method, views = _build(), _views()
    method.train()
    z, p = {}, {}
    for view in (0, 1):
        z[f"v{view + 1}"] = method.video_projector(method.video_backbone(views.video[view]))
        z[f"a{view + 1}"] = method.audio_projector(method.audio_backbone(views.audio[view]))
        p[f"v{view + 1}"] = method.video_predictor(z[f"v{view + 1}"])
        p[f"a{view + 1}"] = method.audio_predictor(z[f"a{view + 1}"])
    literal = {}
    for pair in PAIRS:
        x, y = pair[:2], pair[2:]
        literal[pair] = _literal_d(p[x], z[y]) / 2 + _literal_d(p[y], z[x]) / 2
    loss, metrics = method(views)
    assert loss.item() == pytest.approx(sum(literal.values()) / 6, abs=1e-5)
    for pair in PAIRS:
        assert metrics[f"loss/{pair}"].item() == pytest.approx(literal[pair], abs=1e-5)


def test_without_async_divides_by_four() -> None:
    loss, metrics = _build(async_weight=0.0)(_views())
    pairs = [name for name in metrics if name.startswith("loss/")]
    assert sorted(pairs) == ["loss/a1a2", "loss/v1a1", "loss/v1v2", "loss/v2a2"]
    assert loss.item() == pytest.approx(sum(metrics[name].item() for name in pairs) / 4, abs=1e-6)


@pytest.mark.parametrize("off", ["video", "audio", "sync", "async"])
def test_every_family_switches_off(off: str) -> None:
    method = _build(**{f"{off}_weight": 0.0})
    _, metrics = method(_views())
    on = {f"loss/{pair}" for pair, group in LOSS_GROUP.items() if group != off}
    assert {name for name in metrics if name.startswith("loss/")} == on


def test_a_single_modality_leaves_the_other_network_alone() -> None:
    method = _build(audio_weight=0.0, sync_weight=0.0, async_weight=0.0)
    loss, metrics = method(_views())
    loss.backward()
    assert not method.uses_all_parameters
    assert all(parameter.grad is None for parameter in method.audio_backbone.parameters())
    assert "collapse/audio_std" not in metrics


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight may be negative and one must be positive"):
        _build(video_weight=0.0, audio_weight=0.0, sync_weight=0.0, async_weight=0.0)
    with pytest.raises(ValueError, match=r"method.sync_weight=-1"):
        _build(sync_weight=-1.0)


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"method.name=nothing is unknown: choose one of .*crisscross"):
        build_method({"name": "nothing"}, TINY, CLIPS, seed=0)
    assert "crisscross" in method_names()
    assert "base" not in method_names()


def test_collapse_monitor() -> None:
    generator = torch.Generator().manual_seed(0)
    assert embedding_std(torch.randn(4096, 64, generator=generator)).item() == pytest.approx(1 / 8, rel=0.02)
    assert embedding_std(torch.ones(10, 64)).item() == pytest.approx(0.0, abs=1e-7)


def test_the_whole_model_has_the_papers_size() -> None:
    method = build_method({"name": "crisscross", **ALL_ON}, PAPER, CLIPS, seed=0)

    def millions(module: torch.nn.Module) -> float:
        return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)

    assert millions(method.video_backbone) == 15.38
    assert millions(method.audio_backbone) == 11.17
    assert millions(method) == 49.66


def test_predictors_are_a_group_of_their_own() -> None:
    method = _build()
    groups = method.parameter_groups()
    assert sum(len(group) for group in groups.values()) == len(list(method.parameters()))
    assert len(groups["predictor"]) == len([*method.video_predictor.parameters()]) * 2


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = _build().state_dict()
    torch.manual_seed(2)
    other = _build().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_initial_backbones_are_the_random_init_baseline() -> None:
    method, baseline = _build(), random_init_backbones(TINY, seed=0)
    for name, tensor in baseline.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name])
