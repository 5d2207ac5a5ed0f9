"""Metrics of folds and their mean, and the tables of predictions and neighbors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crisscross.evaluation.folds import Fold
from crisscross.evaluation.results import Results, write_results
from crisscross.evaluation.retrieval import Neighbors
from crisscross.run.run_dir import RunDirectory
from tests.evaluation.support import manifest_of
from tests.support import history, tiny_config

CLASSES = ["a", "b", "c"]


def _fold(name: str, train: str, test: str) -> Fold:
    """Return a fold with one clip per letter; the letter is its label."""
    clips = [
        {"path": f"{split}{name}/{index}", "label": label, "split": split}
        for split, labels in (("train", train), ("test", test))
        for index, label in enumerate(labels)
    ]
    frame = manifest_of(clips).clips
    frame["label_id"] = [CLASSES.index(label) for label in frame["label"]]
    of = {split: frame[frame["split"] == split].reset_index(drop=True) for split in ("train", "test")}
    return Fold(name, of["train"], of["test"], None)


def _scores(predicted: str) -> np.ndarray:
    return np.eye(3)[[CLASSES.index(label) for label in predicted]]


def test_metrics_are_those_of_the_folds_and_their_mean() -> None:
    results = Results(CLASSES, num_folds=2)
    one, two = _fold("1", "abc", "abca"), _fold("3", "abcabc", "bb")
    results.add_scores(one, "v", _scores("abbb"), {"svm/c": 0.01})
    results.add_scores(two, "v", _scores("bb"), {"svm/c": 1.0})
    results.add_scores(one, "av", _scores("abca"), {})
    results.add_scores(two, "av", _scores("ab"), {})
    assert results.metrics == {
        "eval/top1_v": pytest.approx(0.75),  # the mean of the folds, not of their clips
        "eval/top1_v_fold1": 0.5,
        "eval/top1_v_fold3": 1.0,
        "eval/top1_av": pytest.approx(0.75),
        "eval/top1_av_fold1": 1.0,
        "eval/top1_av_fold3": 0.5,
        **{f"eval/top5_{name}": 1.0 for name in ("v", "v_fold1", "v_fold3", "av", "av_fold1", "av_fold3")},
        "svm/c_v": pytest.approx(0.1),  # the geometric mean
        "svm/c_v_fold1": 0.01,
        "svm/c_v_fold3": 1.0,
    }
    about = results.about()
    assert (about["num_train_clips"], about["num_test_clips"], about["num_classes"]) == ([3, 6], [4, 2], 3)
    table = results.tables()["predictions.csv"]
    assert table.columns.tolist() == ["path", "label", "predicted_v", "predicted_av", "fold"]
    assert table["path"].tolist() == [f"test1/{index}" for index in range(4)] + ["test3/0", "test3/1"]
    assert "".join(table["predicted_v"]) == "abbbbb"
    assert "".join(table["predicted_av"]) == "abcaab"
    assert table["fold"].tolist() == ["1"] * 4 + ["3"] * 2


def test_without_folds_there_is_one_metric_and_no_column() -> None:
    results = Results(CLASSES, num_folds=1)
    results.add_scores(_fold("", "abc", "aab"), "a", _scores("abb"), {})
    assert results.metrics == {"eval/top1_a": pytest.approx(2 / 3), "eval/top5_a": 1.0}
    assert (results.about()["num_train_clips"], results.about()["num_test_clips"]) == (3, 3)
    assert [*results.tables()["predictions.csv"].columns] == ["path", "label", "predicted_a"]


def test_one_fold_of_several_is_named() -> None:
    results = Results(CLASSES, num_folds=1)
    results.add_scores(_fold("2", "abc", "aab"), "a", _scores("abb"), {})
    assert results.metrics["eval/top1_a"] == results.metrics["eval/top1_a_fold2"]
    assert results.about()["num_test_clips"] == 3
    assert results.tables()["predictions.csv"]["fold"].tolist() == ["2"] * 3


def test_classes_that_were_not_trained_on_are_never_hits() -> None:
    results = Results(CLASSES, num_folds=1)
    scores = np.array([[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]])  # probabilities, of a layer of three outputs
    results.add_scores(_fold("", "abab", "ca"), "v", scores, {})
    assert results.metrics == {"eval/top1_v": 0.5, "eval/top5_v": 0.5}
    assert "".join(results.tables()["predictions.csv"]["predicted_v"]) == "ba"


def _neighbors() -> Neighbors:
    return Neighbors(np.array([[2, 0, 1], [1, 2, 0]]), np.array([[0.1234567, 0.2, 0.3], [0.0, 0.5, 0.6]]))


def test_neighbours_are_written_with_rank_and_distance() -> None:
    results = Results(CLASSES, num_folds=1)
    results.add_neighbors(_fold("1", "abc", "cb"), "v", _neighbors(), {1: 1.0, 2: 1.0}, num_kept=2)
    tables = results.tables()
    assert [*tables] == ["neighbours.csv"]  # nothing was predicted
    expected = [
        ("1", "v", "test1/0", "c", 1, "train1/2", "c", 0.123457),
        ("1", "v", "test1/0", "c", 2, "train1/0", "a", 0.2),
        ("1", "v", "test1/1", "b", 1, "train1/1", "b", 0.0),
        ("1", "v", "test1/1", "b", 2, "train1/2", "c", 0.5),
    ]
    names = ["fold", "modality", "query", "query_label", "rank", "neighbour", "neighbour_label", "distance"]
    pd.testing.assert_frame_equal(tables["neighbours.csv"], pd.DataFrame(expected, columns=names))
    assert results.metrics["eval/recall_at_1_v_fold1"] == results.metrics["eval/recall_at_2_v"] == 1.0


def test_neighbours_without_folds_and_none_at_all() -> None:
    results = Results(CLASSES, num_folds=1)
    results.add_neighbors(_fold("", "abc", "cb"), "v", _neighbors(), {1: 1.0}, num_kept=1)
    results.add_neighbors(_fold("", "abc", "cb"), "a", _neighbors(), {1: 0.5}, num_kept=0)
    table = results.tables()["neighbours.csv"]
    assert "fold" not in table
    assert table["modality"].tolist() == ["v", "v"]
    assert results.metrics == {"eval/recall_at_1_v": 1.0, "eval/recall_at_1_a": 0.5}


def test_what_is_written_is_the_result(tmp_path: Path) -> None:
    run = RunDirectory.create("downstream", tiny_config("downstream", tmp_path))
    results = Results(CLASSES, num_folds=1)
    results.add_scores(_fold("", "abc", "aab"), "a", _scores("abb"), {})
    for _ in range(2):  # an earlier, killed start may have written the same lines
        write_results(run, results)
    assert run.result["artifacts"] == ["predictions.csv"]
    assert run.result["metrics"] == results.metrics
    assert history(run) == []
    assert "".join(pd.read_csv(run.path / "predictions.csv")["predicted_a"]) == "abb"
    for _ in range(2):
        write_results(run, results, trained={"steps": 3, "metrics": {"loss/total": 1.0}})
    assert history(run) == [(4, results.metrics)]
    assert run.result["metrics"] == {"loss/total": 1.0, **results.metrics}
