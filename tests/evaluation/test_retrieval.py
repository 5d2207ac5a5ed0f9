"""Nearest neighbors against two literal loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from crisscross.evaluation import retrieval
from crisscross.evaluation.retrieval import recall_at, retrieve
from tests.evaluation.support import clusters, protocol, rows_of

QUERIES, QUERY_LABELS = clusters(13, spread=2.0, seed=1)
GALLERY, GALLERY_LABELS = clusters(27, spread=2.0, seed=2)


def _vectors(clips: np.ndarray, *, normalise_segments: bool, centre: bool) -> list[list[float]]:
    vectors = []
    for segments in clips.astype(np.float64).tolist():
        if normalise_segments:
            segments = [[value / math.hypot(*segment) for value in segment] for segment in segments]
        vectors.append([sum(values) / len(values) for values in zip(*segments, strict=True)])
    if centre:
        means = [sum(values) / len(values) for values in zip(*vectors, strict=True)]
        vectors = [[value - mean for value, mean in zip(vector, means, strict=True)] for vector in vectors]
    return vectors


def _distance(one: list[float], other: list[float], distance: str) -> float:
    if distance == "euclidean":
        return math.dist(one, other)
    return 1 - sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("normalise_segments", [False, True])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_and_recalls_equal_two_loops(
    distance: str, normalise_segments: bool, centre: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"normalise_segments": normalise_segments, "centre": centre}
    monkeypatch.setattr(retrieval, "QUERIES_PER_BLOCK", 5)
    settings = protocol("retrieval", distance=distance, ranks=(1, 3, 5), num_neighbours=4, **chosen)
    found = retrieve(rows_of(QUERIES, QUERY_LABELS), rows_of(GALLERY, GALLERY_LABELS), settings=settings)
    recalls = recall_at(found, QUERY_LABELS, GALLERY_LABELS, settings.ranks)

    queries, gallery = (_vectors(clips, **chosen) for clips in (QUERIES, GALLERY))
    assert found.indices.shape == found.distances.shape == (len(queries), 5)
    hits = dict.fromkeys(settings.ranks, 0)
    for index, query in enumerate(queries):
        near = sorted((_distance(query, other, distance), place) for place, other in enumerate(gallery))[:5]
        assert found.indices[index].tolist() == [place for _, place in near]
        assert np.allclose(found.distances[index], [value for value, _ in near], atol=1e-9)
        for rank in hits:
            hits[rank] += any(GALLERY_LABELS[place] == QUERY_LABELS[index] for _, place in near[:rank])
    assert recalls == {rank: pytest.approx(count / len(queries)) for rank, count in hits.items()}


def _found(queries: np.ndarray, gallery: np.ndarray, **changes: Any) -> retrieval.Neighbors:
    settings = protocol("retrieval", **changes)
    return retrieve(
        rows_of(queries, np.zeros(len(queries), int)), rows_of(gallery, np.zeros(len(gallery), int)), settings=settings
    )


def test_a_gallery_smaller_than_the_largest_rank_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    found = _found(QUERIES, GALLERY[:3], ranks=(1, 5), num_neighbours=2)
    assert sorted(found.indices[0].tolist()) == [0, 1, 2]
    assert "the gallery has 3 clips: R@5 means that any of them is a hit" in caplog.text
    labels = np.array([0, 1, 1])
    assert recall_at(found, np.full(len(QUERIES), 0), labels, (1, 5))[5] == 1.0
    assert recall_at(found, np.full(len(QUERIES), 2), labels, (1, 5))[5] == 0.0


def test_a_gallery_smaller_than_the_list_of_neighbours_is_not_a_rank(caplog: pytest.LogCaptureFixture) -> None:
    found = _found(QUERIES, GALLERY[:3], ranks=(1,), num_neighbours=5)
    assert found.indices.shape == (len(QUERIES), 3)
    assert "R@5" not in caplog.text


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    "size", [11, 16, 31, 43]
)  # processors multiply blocks of 4, 8 or 16 columns, and the rest apart
def test_of_copies_the_first_comes_first(distance: str, size: int) -> None:
    gallery = np.concatenate([GALLERY[:5]] * 9)[:size]
    found = _found(QUERIES, gallery, distance=distance, ranks=(size,))
    for row in found.indices:
        assert all(np.diff(row[row % 5 == kind]).min() > 0 for kind in range(5))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_clip_is_nearest_to_itself(distance: str) -> None:
    found = _found(GALLERY, GALLERY, distance=distance)
    assert found.indices[:, 0].tolist() == list(range(len(GALLERY)))
    assert np.allclose(found.distances[:, 0], 0, atol=1e-6)


def test_the_length_of_features_does_not_matter_to_the_cosine() -> None:
    assert np.array_equal(_found(QUERIES, GALLERY).indices, _found(7 * QUERIES, GALLERY / 3).indices)


def test_features_of_nothing_are_far_from_everything() -> None:
    found = _found(np.zeros_like(QUERIES[:1]), GALLERY)
    assert np.allclose(found.distances, 1.0)
