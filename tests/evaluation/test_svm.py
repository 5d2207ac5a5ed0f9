"""The SVM protocol: features with a known answer, the choice of C, and unsuitable splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from crisscross.evaluation import svm
from crisscross.evaluation.cache import JsonCache
from crisscross.evaluation.scores import top_k
from crisscross.evaluation.svm import SvmResult, evaluate_svm
from crisscross.utils.files import read_json
from crisscross.utils.signals import SHUTDOWN, Preempted
from tests.evaluation.support import clusters, protocol, rows_of

GRID = (1e-3, 1e-2, 1e-1)


def _run(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    expected: np.ndarray | None = None,
    *,
    num_classes: int = 4,
    groups: np.ndarray | None = None,
    sources: np.ndarray | None = None,
    cache: JsonCache | None = None,
    **changes: Any,
) -> SvmResult:
    return evaluate_svm(
        rows_of(train, labels),
        rows_of(test, np.zeros(len(test), int) if expected is None else expected),
        num_classes=num_classes,
        settings=protocol("svm", **{"c_grid": GRID, **changes}),
        seed=0,
        groups=groups,
        sources=sources,
        cache=cache,
    )


class _Model(float):
    """Stands for the SVM of one C."""

    num_steps = 0


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> dict[float, float]:
    """Replace the fits: each C classifies a given fraction of the validation clips correctly."""
    chosen: dict[float, float] = {}
    monkeypatch.setattr(svm._Fitter, "path", lambda self, rows, grid: ((c, _Model(c)) for c in sorted(grid)))

    def scores(self: object, c: float, rows: Any) -> np.ndarray:
        hits = np.arange(len(rows.labels)) < chosen[c] * len(rows.labels) - 1e-9
        return np.eye(4)[np.where(hits, rows.labels, (rows.labels + 1) % 4)]

    monkeypatch.setattr(svm._Fitter, "scores", scores)
    return chosen


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Record the training and validation clips of each fit of a search, and their number of segments."""
    seen = []
    original = svm._held_out_hits

    def recorded(fitter: Any, train: Any, fit: np.ndarray, held_out: np.ndarray, settings: Any) -> Any:
        seen.append((fit, held_out, settings.search_segments))
        return original(fitter, train, fit, held_out, settings)

    monkeypatch.setattr(svm, "_held_out_hits", recorded)
    return seen


def test_separable_classes_are_found() -> None:
    train, labels = clusters(40, spread=0.2)
    test, expected = clusters(20, spread=0.2, seed=1)
    found = _run(train, labels, test)
    assert top_k(found.scores, expected, 1) == 1.0
    assert found.validation_top1 == pytest.approx(1.0)
    assert found.chosen_c in GRID


@pytest.mark.parametrize("standardise", [True, False])
def test_scores_equal_scikit_learn_by_hand(standardise: bool) -> None:
    train, labels = clusters(40, spread=2.0)
    test, _ = clusters(20, spread=2.0, seed=1)
    found = _run(train, labels, test, c_grid=(0.01,), standardise=standardise)
    scaler = StandardScaler(with_mean=standardise, with_std=standardise)
    scaler.fit(train.reshape(-1, 16).astype(np.float64))
    model = LinearSVC(C=0.01, random_state=0, max_iter=5000)
    model.fit(scaler.transform(train.reshape(-1, 16)), labels.repeat(3))
    by_hand = sum(model.decision_function(scaler.transform(test[:, segment])) for segment in range(3)) / 3
    assert np.allclose(found.scores, by_hand, atol=2e-3)
    assert (found.chosen_c, found.validation_top1) == (0.01, None)


def test_noise_gives_chance() -> None:
    random = np.random.default_rng(0)
    test_labels = np.arange(400) % 4
    found = _run(random.normal(size=(200, 2, 8)), np.arange(200) % 4, random.normal(size=(400, 2, 8)))
    assert 0.15 < top_k(found.scores, test_labels, 1) < 0.35


def test_segments_of_a_clip_never_validate_themselves() -> None:
    # Identical segments within a clip, labels by chance: any leak would show as validation far above chance.
    random = np.random.default_rng(0)
    train = random.normal(size=(60, 1, 200)).repeat(5, axis=1)
    found = _run(train, random.integers(0, 4, 60), train[:4])
    assert found.validation_top1 < 0.5


def test_every_clip_validates_once(searched: list) -> None:
    train, labels = clusters(41, spread=1.0)
    _run(train, labels, train, num_folds=3)
    assert len(searched) == 3
    assert sorted(np.concatenate([held_out for _, held_out, _ in searched]).tolist()) == list(range(41))
    for fit, held_out, _ in searched:
        assert sorted([*fit, *held_out]) == list(range(41))
        assert np.bincount(labels[held_out]).min() >= 3  # every class, about equally


def test_official_folds_are_left_out_one_at_a_time(searched: list) -> None:
    train, labels = clusters(40, spread=1.0)
    groups = np.array(["test2", "test5", "test3", "test1"])[np.arange(40) // 10]
    found = _run(train, labels, train, groups=groups, num_folds=2)
    assert found.validation_top1 is not None
    assert len(searched) == 4
    for (fit, held_out, _), name in zip(searched, ("test1", "test2", "test3", "test5"), strict=True):
        assert set(groups[held_out]) == {name}
        assert held_out.tolist() == np.flatnonzero(groups == name).tolist()
        assert fit.tolist() == np.flatnonzero(groups != name).tolist()


def test_folds_that_a_group_alone_makes_are_drawn(searched: list) -> None:
    train, labels = clusters(40, spread=1.0)
    _run(train, labels, train, groups=np.array(["test1"] * 40), num_folds=2)
    assert len(searched) == 2


def test_clips_of_a_source_video_never_validate_each_other(searched: list) -> None:
    # Clips of a video are alike, labels by chance: any leak would show as validation far above chance.
    random = np.random.default_rng(0)
    video = np.arange(60) // 5
    labels = np.tile([0, 1, 2, 3], 3)[video]
    train = random.normal(size=(12, 1, 200))[video] + 0.1 * random.normal(size=(60, 1, 200))
    sources = np.array([f"video {number}" for number in video])
    assert _run(train, labels, train[:4]).validation_top1 > 0.9
    searched.clear()
    official = np.array(["test1", "test2"])[np.arange(60) % 2]  # would split videos
    found = _run(train, labels, train[:4], sources=sources, groups=official)
    assert found.validation_top1 < 0.6
    assert len(searched) == 3
    assert sorted(np.concatenate([held_out for _, held_out, _ in searched]).tolist()) == list(range(60))
    for fit, held_out, _ in searched:
        assert not {*video[fit]} & {*video[held_out]}
        assert np.bincount(labels[held_out]).tolist() == [5, 5, 5, 5]


def test_the_test_split_chooses_c_if_set(accuracies: dict[float, float]) -> None:
    train, labels = clusters(40, spread=1.0)
    accuracies |= {1e-3: 0.5, 1e-2: 0.75, 1e-1: 0.5}
    found = _run(train, labels, train, labels, select="test")
    assert (found.chosen_c, found.validation_top1) == (1e-2, None)


def test_the_test_split_chooses_the_c_that_is_best_on_it(searched: list) -> None:
    train, labels = clusters(40, spread=3.0)
    test, expected = clusters(80, spread=3.0, seed=1)
    alone = {c: top_k(_run(train, labels, test, c_grid=(c,)).scores, expected, 1) for c in GRID}
    assert len(set(alone.values())) > 1
    found = _run(train, labels, test, expected, select="test")
    assert found.chosen_c == max(alone, key=lambda c: (alone[c], -c))
    assert found.validation_top1 is None
    assert top_k(found.scores, expected, 1) == pytest.approx(max(alone.values()))
    assert not searched  # nothing is held out


def test_the_test_labels_do_not_matter_otherwise() -> None:
    train, labels = clusters(40, spread=3.0)
    test, expected = clusters(80, spread=3.0, seed=1)
    one, other = (_run(train, labels, test, some) for some in (expected, (expected + 1) % 4))
    assert (one.chosen_c, one.validation_top1) == (other.chosen_c, other.validation_top1)
    assert np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize("select", ["validation", "test"])
def test_of_equally_good_values_the_smallest_is_taken(accuracies: dict[float, float], select: str) -> None:
    train, labels = clusters(40, spread=1.0)
    accuracies |= {1e-3: 0.25, 1e-2: 0.75, 1e-1: 0.75, 1.0: 0.75}
    found = _run(train, labels, train, labels, c_grid=(1.0, 1e-1, 1e-3, 1e-2), select=select)
    assert found.chosen_c == 1e-2
    assert found.validation_top1 == (pytest.approx(0.75, abs=0.05) if select == "validation" else None)


def test_equally_many_hits_are_equally_good_in_whatever_folds_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    # Folds of different sizes with the same number of hits: ties must be exact.
    train, labels = clusters(40, spread=1.0)
    groups = np.array(["test1"] * 7 + ["test2"] * 11 + ["test3"] * 22)
    for first, second in (((1, 2, 11), (2, 3, 9)), ((5, 7, 14), (7, 9, 10)), ((3, 10, 3), (6, 5, 5))):
        for small, large in ((first, second), (second, first)):
            hits = iter(zip(small, large, strict=True))

            def found(
                fitter: Any, train: Any, fit: np.ndarray, held_out: np.ndarray, settings: Any, hits: Any = hits
            ) -> list[int]:
                return list(next(hits))

            monkeypatch.setattr(svm, "_held_out_hits", found)
            assert _run(train, labels, train, c_grid=(1e-3, 1e-2), groups=groups).chosen_c == 1e-3


def test_a_search_looks_at_some_segments_and_the_svm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(40, spread=1.0)
    sizes = []
    original = svm.fit_svm

    def recorded(rows: Any, **settings: Any) -> Any:
        sizes.append((len(rows.clips), rows.num_segments))
        return original(rows, **settings)

    monkeypatch.setattr(svm, "fit_svm", recorded)
    found = _run(train, labels, train, c_grid=(1e-2, 1e-1), num_folds=2, search_segments=2)
    assert sizes == [(20, 2)] * 4 + [(40, 3)]
    assert found.scores.shape == (40, 4)
    # As if the others were not there:
    cut = _run(train[:, :2], labels, train, c_grid=(1e-2, 1e-1), num_folds=2)
    assert (cut.chosen_c, cut.validation_top1) == (found.chosen_c, found.validation_top1)


def test_validation_equals_fits_by_hand(searched: list) -> None:
    train, labels = clusters(45, spread=3.0)
    found = _run(train, labels, train)
    hits = dict.fromkeys(GRID, 0)
    for fit, held_out, _ in searched:
        scaler = StandardScaler().fit(train[fit].reshape(-1, 16).astype(np.float64))
        for c in GRID:
            model = LinearSVC(C=c, max_iter=10000, random_state=0)
            model.fit(scaler.transform(train[fit].reshape(-1, 16)), labels[fit].repeat(3))
            values = [model.decision_function(scaler.transform(train[held_out][:, segment])) for segment in range(3)]
            hits[c] += int((sum(values).argmax(axis=1) == labels[held_out]).sum())
    assert found.chosen_c == max(hits, key=lambda c: (hits[c], -c))
    assert found.validation_top1 == pytest.approx(max(hits.values()) / 45)


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(40, spread=2.0)
    whole = _run(train, labels, train)
    calls = []
    original = svm._held_out_hits

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGUSR2")
        return original(*arguments)

    monkeypatch.setattr(svm, "_held_out_hits", counted)
    cache = JsonCache(tmp_path / "features" / "svm.json")
    with pytest.raises(Preempted, match="SIGUSR2"):
        _run(train, labels, train, cache=cache)
    assert len(read_json(cache.path)) == 1  # the interrupted fold is not stored
    monkeypatch.setattr(SHUTDOWN, "signal_name", None)
    found = _run(train, labels, train, cache=cache)
    assert len(calls) == 4  # three folds, and the interrupted one
    assert np.array_equal(found.scores, whole.scores)
    assert (found.chosen_c, found.validation_top1) == (whole.chosen_c, whole.validation_top1)


def test_two_classes_and_unseen_classes() -> None:
    train, labels = clusters(20, spread=0.1, num_classes=2)
    found = _run(train, labels * 2, train, num_classes=4)
    assert found.scores.shape == (20, 4)
    assert np.isneginf(found.scores[:, [1, 3]]).all()
    assert top_k(found.scores, labels * 2, 1) == 1.0


def test_classes_with_fewer_clips_than_folds_are_named(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    train, labels = clusters(20, spread=0.1, num_classes=2)
    labels[labels.nonzero()[0][:2]] = 2
    rows, settings = rows_of(train, labels), protocol("svm", c_grid=GRID, num_folds=3)
    evaluate_svm(rows, rows, num_classes=4, settings=settings, seed=0, class_names=["ant", "bee", "cat", "dog"])
    assert caplog.messages == [
        "C is chosen by 3 folds, not all of which have training clips of cat (2): add clips of these classes, lower"
        " downstream.num_folds, or choose C yourself (downstream.c_grid=[1e-3])"
    ]
    assert not [found for found in recwarn if "populated" in str(found.message)]


def test_unfit_splits_are_refused() -> None:
    train, labels = clusters(8, spread=0.1)
    with pytest.raises(ValueError, match="an SVM needs training clips of 2 classes, got 1"):
        _run(train, np.zeros_like(labels), train)
    with pytest.raises(ValueError, match="C cannot be chosen by cross-validation with one training clip per class"):
        _run(train[:4], labels[:4], train)
    with pytest.raises(ValueError, match=r"with one source video per class: .* or more videos$"):
        _run(train, labels, train, sources=labels.astype(str))
    found = _run(train[:4], labels[:4], train, c_grid=(0.1,))
    assert (found.chosen_c, found.validation_top1) == (0.1, None)
