"""Feature matrices against plain NumPy: in memory and on disk, in one block and in many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisscross.evaluation import feature_matrix
from crisscross.evaluation.feature_matrix import FeatureMatrix

NUM, SEGMENTS, DIMS = 11, 3, (4, 2)
CLIPS = np.array([7, 0, 3, 10, 4, 5])
LABELS = np.array([2, 0, 1, 1, 0, 2])
WHOLE = np.random.default_rng(0).normal(loc=3, scale=2, size=(NUM, SEGMENTS, sum(DIMS))).astype(np.float32)
EXPECTED = WHOLE[CLIPS]

Make = Callable[[], FeatureMatrix]


@pytest.fixture(params=["in memory", "on disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that makes a matrix from the files of two modalities."""
    if request.param == "on disk":
        monkeypatch.setattr(feature_matrix, "IN_MEMORY_BYTES", 0)

    def rows() -> FeatureMatrix:
        arrays = []
        for index, part in enumerate(np.split(WHOLE, [DIMS[0]], axis=2)):
            path = tmp_path / f"{index}.f32"
            path.write_bytes(part.tobytes())
            arrays.append(np.memmap(path, np.float32, "r", shape=part.shape))
        made = FeatureMatrix.of(tuple(arrays), CLIPS, LABELS)
        assert len(made.arrays) == (2 if request.param == "on disk" else 1)
        return made

    return rows


@pytest.fixture(params=[1, 3, 4, 1000], ids=lambda clips: f"{clips} clips a block")
def clips_a_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(feature_matrix, "BLOCK_BYTES", request.param * SEGMENTS * sum(DIMS) * 4)
    return request.param


def test_sizes(make: Make) -> None:
    rows = make()
    assert (len(rows), rows.dim, rows.num_segments) == (len(CLIPS) * SEGMENTS, sum(DIMS), SEGMENTS)
    assert np.array_equal(rows.labels, LABELS)


def test_blocks_are_all_rows_in_order(make: Make, clips_a_block: int) -> None:
    blocks = list(make().blocks())
    assert len(blocks) == -(-len(CLIPS) // clips_a_block)
    assert np.array_equal(np.concatenate([block for block, _ in blocks]), EXPECTED.reshape(-1, sum(DIMS)))
    assert np.array_equal(np.concatenate([labels for _, labels in blocks]), LABELS.repeat(SEGMENTS))
    assert {block.dtype for block, _ in blocks} == {np.dtype(np.float32)}


def test_a_block_smaller_than_a_clip_is_a_clip(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_matrix, "BLOCK_BYTES", 1)
    assert [len(block) for block, _ in make().blocks()] == [SEGMENTS] * len(CLIPS)


def test_clips_and_rows_by_place(make: Make) -> None:
    rows = make()
    assert np.array_equal(rows.at(slice(1, 3)), EXPECTED[1:3])
    assert np.array_equal(rows.at(np.array([5, 0])), EXPECTED[[5, 0]])
    chosen = np.array([17, 0, 4, 4, 9])
    found, labels = rows.at_rows(chosen)
    assert np.array_equal(found, EXPECTED.reshape(-1, sum(DIMS))[chosen])
    assert np.array_equal(labels, LABELS.repeat(SEGMENTS)[chosen])


def test_some_of_the_clips_with_some_of_their_segments(make: Make, clips_a_block: int) -> None:
    chosen = np.array([4, 1, 2])
    for wanted, expected_segments in ((None, 3), (2, 2), (9, 3)):
        some = make().some(chosen, num_segments=wanted)
        expected = EXPECTED[chosen][:, :expected_segments]
        assert len(some) == 3 * expected_segments
        assert np.array_equal(np.concatenate([block for block, _ in some.blocks()]), expected.reshape(-1, sum(DIMS)))
        assert np.array_equal(some.at(slice(None)), expected)
        assert np.array_equal(some.labels, LABELS[chosen])
        found, labels = some.at_rows(np.array([len(some) - 1]))
        assert np.array_equal(found[0], expected[-1, -1])
        assert labels.tolist() == [LABELS[2]]
    some = make().some(np.array([5, 4, 3, 2])).some(np.array([2, 0]), num_segments=1)
    assert np.array_equal(some.at(slice(None)), EXPECTED[[3, 5]][:, :1])


def test_moments(make: Make, clips_a_block: int) -> None:
    mean, std = make().moments()
    flat = EXPECTED.reshape(-1, sum(DIMS)).astype(np.float64)
    assert np.allclose(mean, flat.mean(axis=0), rtol=1e-6)
    assert np.allclose(std, flat.std(axis=0), rtol=1e-6)


def test_moments_of_features_that_hardly_vary_far_from_zero() -> None:
    features = np.full((50, 2, 3), 1000.0, np.float32)
    features[..., 1] += np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    features[..., 2] = 0.1  # not exact in floating point
    mean, std = FeatureMatrix((features,), np.arange(50), np.zeros(50, int), 2).moments()
    flat = features.reshape(-1, 3).astype(np.float64)
    assert np.allclose(mean, flat.mean(axis=0))
    assert std[[0, 2]].tolist() == [1, 1]  # constant features
    assert std[1] == pytest.approx(flat[:, 1].std(), rel=1e-4)
