"""XDC: the loss against a literal implementation, targets, draws, and clustering."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from crisscross.config.method import settings_of
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.methods.xdc import balanced_draws, clustered, whitened
from tests.methods.support import TINY, random_views

NUM_CLIPS = 12
OPTIONS = {
    "name": "xdc",
    "num_clusters": 3,
    "recluster_every_epochs": 1,
    "whiten_dims": 8,
    "kmeans_iterations": 20,
}


def _build(num_clips: int = NUM_CLIPS, seed: int = 0, **options: int):
    clips = DatasetInfo(num_clips=num_clips, num_classes=3)
    return build_method({**OPTIONS, **options}, TINY, clips, seed=seed)


def _views(clip_ids: list[int]) -> Views:
    return random_views(clip_ids)


def _found(v: np.ndarray, a: np.ndarray):
    """Replace the feature extraction over the training set."""
    return lambda networks: {"v": lambda: v, "a": lambda: a}


def _groups(sizes: list[int], *, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Return features in well separated groups, in order, far from zero."""
    rng = np.random.default_rng(seed)
    centers = 5.0 * rng.standard_normal((len(sizes), dim))
    rows = np.repeat(centers, sizes, axis=0) + 0.01 * rng.standard_normal((sum(sizes), dim))
    return (rows + 100.0).astype(np.float32)


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())) == len(set(other.tolist()))
    )


def _literal_cross_entropy(features: torch.Tensor, head: torch.nn.Linear, targets: list[int]) -> float:
    """Return the loss one clip, class and dimension at a time, in double precision."""
    total = 0.0
    for row, target in zip(features.tolist(), targets, strict=True):
        logits = []
        for weights, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True):
            logits.append(sum(w * x for w, x in zip(weights, row, strict=True)) + bias)
        total -= logits[target] - math.log(sum(math.exp(logit) for logit in logits))
    return total / len(targets)


def test_each_encoder_predicts_the_clusters_of_the_other() -> None:
    method, ids = _build(), [7, 2, 2, 11]
    by_video, by_audio = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1]
    method.video_clusters.copy_(torch.tensor(by_video))
    method.audio_clusters.copy_(torch.tensor(by_audio))
    views = _views(ids)
    loss, metrics = method(views)
    of_video = method.video_backbone(views.video[0])
    of_audio = method.audio_backbone(views.audio[0])
    video = _literal_cross_entropy(of_video, method.video_head, [by_audio[clip] for clip in ids])
    audio = _literal_cross_entropy(of_audio, method.audio_head, [by_video[clip] for clip in ids])
    assert metrics["loss/video"].item() == pytest.approx(video, abs=1e-5)
    assert metrics["loss/audio"].item() == pytest.approx(audio, abs=1e-5)
    assert loss.item() == pytest.approx((video + audio) / 2, abs=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_assignments_are_those_of_the_features_and_belong_to_an_epoch() -> None:
    method = _build(recluster_every_epochs=2, whiten_dims=2)
    video, audio = _groups([6, 3, 3]), _groups([2, 8, 2], seed=1)
    assert method.clusters_epoch == -1
    replaced = method.on_epoch_start(0, _found(video, audio), seed=5)
    assert _same_partition(method.video_clusters.numpy(), np.repeat([0, 1, 2], [6, 3, 3]))
    assert _same_partition(method.audio_clusters.numpy(), np.repeat([0, 1, 2], [2, 8, 2]))
    heads = [*method.video_head.parameters(), *method.audio_head.parameters()]
    assert [id(parameter) for parameter in replaced] == [id(parameter) for parameter in heads]
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert not [*method.on_epoch_start(1, _found(audio, video), seed=6)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert len([*method.on_epoch_start(2, _found(audio, video), seed=7)]) == 4
    assert _same_partition(method.video_clusters.numpy(), np.repeat([0, 1, 2], [2, 8, 2]))
    assert method.clusters_epoch == 2


def test_features_are_extracted_in_eval_mode() -> None:
    method, modes = _build().train(), []

    def look(networks):
        modes.extend(module.training for network in networks.values() for module in network.modules())
        assert networks.keys() == {"v", "a"}
        return _found(_groups([4, 4, 4]), _groups([4, 4, 4]))(networks)

    method.on_epoch_start(0, look, seed=0)
    assert modes
    assert not any(modes)


def test_new_heads_are_drawn_from_the_seed_and_the_epoch() -> None:
    wide = _build(num_clips=400, num_clusters=200)
    features = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    wide.on_epoch_start(0, _found(features, features), seed=1)
    for head in (wide.video_head, wide.audio_head):
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert abs(head.weight.mean().item()) < 0.001
        assert not head.bias.any()
    assert not torch.equal(wide.video_head.weight, wide.audio_head.weight)
    first = wide.video_head.weight.clone()
    wide.on_epoch_start(1, _found(features, features), seed=2)
    assert not torch.equal(wide.video_head.weight, first)
    torch.manual_seed(99)
    wide.on_epoch_start(1, _found(features, features), seed=1)
    assert torch.equal(wide.video_head.weight, first)


def test_whitening_decorrelates_and_leaves_out_what_hardly_varies() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 7)) * 0.1 + 50.0  # rank 4, far from zero
    rows = whitened(np.hstack([mixed, np.full((500, 2), 3.0)]).astype(np.float32), 256)
    assert rows.shape == (500, 4)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    # Before normalization the columns are uncorrelated with variance 1; unit rows are, up to one common scale, too.
    np.testing.assert_allclose(rows.T @ rows / 500, np.eye(4) / 4, atol=0.05)
    # Independent reference: the inverse covariance gives the same angles between clips.
    centered = mixed - mixed.mean(axis=0)
    products = centered @ np.linalg.pinv(np.cov(mixed.T), rcond=1e-6) @ centered.T
    lengths = np.sqrt(np.diag(products))
    np.testing.assert_allclose(rows @ rows.T, products / np.outer(lengths, lengths), atol=2e-3)
    assert whitened(mixed.astype(np.float32), 2).shape == (500, 2)


def test_features_that_are_all_alike_are_one_cluster() -> None:
    alike = np.full((20, 5), 3.3, np.float32)
    assert not whitened(alike, 4).any()
    assert len(set(clustered(alike, 4, whiten_dims=4, iterations=10, seed=0).tolist())) == 1


def test_fewer_distinct_clips_than_clusters_leave_clusters_empty() -> None:
    features = np.repeat(_groups([1, 1, 1, 1, 1]), 6, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = clustered(features, 12, whiten_dims=8, iterations=20, seed=0)
    assert _same_partition(found, np.repeat(np.arange(5), 6))
    method = _build(num_clips=30, num_clusters=12)
    method.on_epoch_start(0, _found(features, np.full((30, 4), 1.0, np.float32)), seed=0)
    clips = method.epoch_indices(60, seed=3)
    assert clips.shape == (60,)
    loss, _ = method(_views(clips[:4].tolist()))
    assert torch.isfinite(loss)


def test_no_cluster_is_empty_where_there_are_enough_clips() -> None:
    features = np.random.default_rng(3).standard_normal((60, 5)).astype(np.float32)
    for seed in range(5):
        assert set(clustered(features, 40, whiten_dims=5, iterations=50, seed=seed).tolist()) == set(range(40))


def test_clusters_do_not_depend_on_the_number_of_threads() -> None:
    features = np.random.default_rng(1).standard_normal((3000, 32)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(clustered(features, 16, whiten_dims=32, iterations=30, seed=2**62 + 5))
    assert found[0].dtype == np.int64
    np.testing.assert_array_equal(*found)
    other = clustered(features, 16, whiten_dims=32, iterations=30, seed=1)
    assert not np.array_equal(found[0], other)


def test_draws_are_uniform_over_clusters_that_are_not_empty() -> None:
    clusters = np.array([0] * 10 + [3] * 2 + [7] * 5)  # of eight clusters
    clips = balanced_draws(clusters, 20, np.random.default_rng(0))
    by_cluster = np.bincount(clusters[clips], minlength=8)
    assert sorted(by_cluster[[0, 3, 7]].tolist()) == [6, 7, 7]
    assert by_cluster.sum() == 20
    # No clip is drawn again before all clips of its cluster are drawn.
    times = np.bincount(clips, minlength=17)
    for cluster in (0, 3, 7):
        of_cluster = times[clusters == cluster]
        assert of_cluster.max() - of_cluster.min() <= 1


def test_half_of_an_epoch_is_balanced_by_each_modality() -> None:
    method = _build(num_clips=100)
    rare_sight, rare_sound = np.repeat([0, 1], [90, 10]), np.tile([0] * 9 + [2], 10)
    method.video_clusters.copy_(torch.from_numpy(rare_sight))
    method.audio_clusters.copy_(torch.from_numpy(rare_sound))
    clips = method.epoch_indices(4000, seed=1)
    # 1/2 from its own half, and in the other half its share of the clips.
    assert (rare_sight[clips] == 1).mean() == pytest.approx(0.5 * 0.5 + 0.5 * 0.1, abs=0.01)
    assert (rare_sound[clips] == 2).mean() == pytest.approx(0.5 * 0.5 + 0.5 * 0.1, abs=0.01)
    np.testing.assert_array_equal(clips, method.epoch_indices(4000, seed=1))
    assert not np.array_equal(clips, method.epoch_indices(4000, seed=2))
    assert abs(np.corrcoef(np.arange(4000), clips)[0, 1]) < 0.1  # in random order


def test_assignments_are_in_the_state() -> None:
    method, other = _build(), _build(seed=1)
    method.on_epoch_start(0, _found(_groups([6, 3, 3]), _groups([2, 8, 2])), seed=5)
    other.load_state_dict(method.state_dict())
    assert other.clusters_epoch == 0
    np.testing.assert_array_equal(other.epoch_indices(24, seed=1), method.epoch_indices(24, seed=1))
    assert set(method.replicated_buffers) <= dict(method.named_buffers()).keys()


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"num_clusters": 13}, "method.num_clusters=13 is more than the 12 clips of the training split: lower it"),
        ({"num_clusters": 1}, "method.num_clusters=1"),
        ({"recluster_every_epochs": 0}, "method.recluster_every_epochs=0"),
        ({"clusters": 3}, "method.clusters"),
    ],
)
def test_impossible_numbers_are_refused(wrong: dict[str, int], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        _build(**wrong)
    assert "\n" not in str(caught.value)


def test_it_is_known_before_a_launch() -> None:
    known = settings_of(OPTIONS)
    assert known is not None
    assert (known.modalities, known.num_views) == ("av", 1)
