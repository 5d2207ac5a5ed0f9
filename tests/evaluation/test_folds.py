"""Folds of a manifest: training and test clips, groups of a cross-validation, rejected splits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisscross.config.data import DataSettings
from crisscross.data.datasets import SOURCE_OF, list_official
from crisscross.data.manifest import Manifest
from crisscross.evaluation.folds import Fold, folds_of, require_streams
from crisscross.evaluation.svm import validation_splits
from tests.data.miniatures import make_miniature
from tests.evaluation.support import manifest_of

NUM_FOLDS = 5


def _data(**changes: object) -> DataSettings:
    known = {"name": "some", "kind": "folder", "root": "x", "train_split": "train", "test_split": "test"}
    return DataSettings(**{**known, "fingerprint": None, **changes})


def _splits(fold: int, folds: range = range(1, NUM_FOLDS + 1)) -> str:
    """Return the splits of an ESC-50 clip: test in one fold, training in the others."""
    return "+".join(f"test{other}" if other == fold else f"train{other}" for other in folds)


@pytest.fixture
def folded() -> Manifest:
    return manifest_of(
        [
            {"path": f"{fold}-{label}", "label": label, "split": _splits(fold)}
            for fold in range(1, NUM_FOLDS + 1)
            for label in ("cat", "dog")
        ]
    )


def test_every_clip_is_tested_once_and_trains_in_the_other_folds(folded: Manifest) -> None:
    folds = folds_of(folded, _data(folds=(1, 2, 3, 4, 5)))
    assert [fold.name for fold in folds] == ["1", "2", "3", "4", "5"]
    for fold in folds:
        assert set(fold.test["path"]) == {f"{fold.name}-cat", f"{fold.name}-dog"}
        assert set(fold.train["path"]) == set(folded.clips["path"]) - set(fold.test["path"])
    assert sorted(path for fold in folds for path in fold.test["path"]) == sorted(folded.clips["path"])


def test_groups_are_the_folds_that_clips_are_the_test_of(folded: Manifest) -> None:
    fold = folds_of(folded, _data(folds=(3,)))[0]
    assert fold.groups.tolist() == [f"test{path[0]}" for path in fold.train["path"]]
    assert sorted(set(fold.groups)) == ["test1", "test2", "test4", "test5"]


def test_there_are_no_groups_where_a_clip_is_never_or_twice_tested(folded: Manifest) -> None:
    for splits in ("train1+train2", "train1+test2+test3"):
        clips = [*folded.clips[["path", "label", "split"]].to_dict("records")]
        other = manifest_of([*clips, {"path": "x", "label": "cat", "split": splits}])
        assert folds_of(other, _data(folds=(1,)))[0].groups is None
        assert folds_of(other, _data(folds=(5,)))[0].groups is not None  # the clip is not in the training split


def test_without_folds_there_is_one_without_a_name_and_groups() -> None:
    manifest = manifest_of(
        [{"path": f"{split}-{label}", "label": label, "split": split} for split in ("train", "test") for label in "ab"]
    )
    (fold,) = folds_of(manifest, _data())
    assert fold.name == ""
    assert fold.groups is None
    assert fold.train["path"].tolist() == ["train-a", "train-b"]
    assert fold.test["label_id"].tolist() == [0, 1]
    (swapped,) = folds_of(manifest, _data(train_split="test", test_split="train"))
    assert swapped.train["path"].tolist() == ["test-a", "test-b"]


def test_a_clip_in_both_splits_is_refused() -> None:
    clips = [{"path": name, "label": "a", "split": split} for name, split in (("x", "train"), ("y", "train+test"))]
    with pytest.raises(
        ValueError,
        match=r"^1 clips are in the training and in the test split \(the first is y\): expected"
        r" none: correct data.train_split, data.test_split or the list of clips$",
    ):
        folds_of(manifest_of(clips), _data())
    with pytest.raises(ValueError, match="2 clips are in the training and in the test split"):
        folds_of(manifest_of(clips), _data(test_split="train"))


def test_a_fold_that_the_lists_lack_is_refused(folded: Manifest) -> None:
    with pytest.raises(ValueError, match="train7"):
        folds_of(folded, _data(folds=(1, 7)))


def test_classes_without_training_clips_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    clips = [("x", "a", "train"), ("y", "b", "test"), ("z", "c", "test"), ("w", "a", "test")]
    keys = ("path", "label", "split")
    with caplog.at_level(logging.WARNING):
        folds_of(manifest_of([dict(zip(keys, clip, strict=True)) for clip in clips]), _data())
    assert caplog.messages == ["no training clips of b, c: their test clips count as errors"]


def _without(stream: str) -> Fold:
    start, end = f"{stream}_start_s", f"{stream}_end_s"
    clips = [{"path": path, "label": "a", "split": split} for path, split in (("x", "train"), ("y", "test"))]
    clips[1] |= {start: np.nan, end: np.nan}
    return folds_of(manifest_of(clips), _data())[0]


def test_a_stream_that_some_clips_lack_is_refused_when_it_is_asked_for() -> None:
    with pytest.raises(
        ValueError,
        match=r"^downstream.modalities needs audio, 1 of 2 clips have none \(the first is y\): set"
        r" downstream.modalities=\[v\], or leave such clips out with data.require=\[audio\]$",
    ):
        require_streams(_without("audio"), "av")
    with pytest.raises(ValueError, match=r"needs video, 1 of 2 .* set downstream.modalities=\[a\], .*\[video\]$"):
        require_streams(_without("video"), "v")
    require_streams(_without("audio"), "v")
    require_streams(_without("video"), "a")


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[str], Manifest]:
    """Return a function that makes the manifest of a miniature from its lists."""

    def manifest(name: str) -> Manifest:
        rows = list_official(name, make_miniature(name, tmp_path / name), None, allow_missing=False)
        return manifest_of([{"path": r.path, "label": r.label, "split": r.split} for r in rows if not r.problem])

    return manifest


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_no_source_video_is_on_both_sides_of_a_validation_split(name: str, listed: Callable[[str], Manifest]) -> None:
    manifest = listed(name)
    for fold in folds_of(manifest, _data(kind=name, folds=(1, 2, 3))):
        labels = fold.train["label_id"].to_numpy()
        assert set(np.unique(fold.sources, return_counts=True)[1]) == {2}  # two clips of each, in one class
        assert len(np.unique(fold.sources)) == len(labels) // 2
        splits = list(validation_splits(labels, 3, groups=fold.groups, sources=fold.sources, seed=0))
        assert len(splits) == 2  # no more folds than videos per class
        for fit, held_out in splits:
            assert not {*fold.sources[fit]} & {*fold.sources[held_out]}
            assert sorted([*fit, *held_out]) == list(range(len(labels)))
            assert np.bincount(labels[held_out]).tolist() == [2, 2, 2]


def test_what_has_no_source_videos_and_copies_of_what_has(
    listed: Callable[[str], Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    assert folds_of(listed("esc50"), _data(kind="esc50", folds=(1,)))[0].sources is None
    manifest = listed("ucf101")
    assert folds_of(manifest, _data(folds=(1,)))[0].sources is None
    (fold,) = folds_of(manifest, _data(name="ucf101", folds=(1,)))  # a compact copy: a folder of that name
    assert fold.sources[0] == "v_ApplyEyeMakeup_g02"
    assert not caplog.messages
    names = [f"{name}.mp4" for name in manifest.clips["path"]]
    names[2] = "UCF-101/A/mine.mp4"  # of group 2: it trains in fold 1
    (fold,) = folds_of(
        manifest_of(manifest.clips[["label", "split"]].assign(path=names).to_dict("records")),
        _data(name="ucf101", folds=(1,)),
    )
    assert "UCF-101/A/mine.mp4" in fold.sources
    assert caplog.messages == [
        "the names of 1 of 12 training clips do not contain the video that they were cut from (the first is"
        " UCF-101/A/mine.mp4): each counts as a video of its own"
    ]


@pytest.mark.parametrize(
    ("dataset", "file", "source"),
    [
        ("ucf101", "UCF-101/HandstandPushups/v_HandStandPushups_g25_c07.avi", "v_HandStandPushups_g25"),
        ("ucf101", "v_ApplyEyeMakeup_g01_c02.avi.mp4", "v_ApplyEyeMakeup_g01"),
        ("ucf101", "ApplyEyeMakeup/clip_g01_c02.avi", None),
        ("hmdb51", "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09_brush_hair"),
        ("hmdb51", "sit/TheBoondockSaints_sit_u_nm_np10_ba_med_0.avi", "TheBoondockSaints_sit"),
        ("hmdb51", "walk/a_u_nm_np1_fr_bad_2_walk_h_cm_np2_le_goo_11.avi", "a_u_nm_np1_fr_bad_2_walk"),
        ("hmdb51", "sit/TheBoondockSaints_sit_u.avi", None),
    ],
)
def test_which_video_a_name_belongs_to(dataset: str, file: str, source: str | None) -> None:
    assert SOURCE_OF[dataset](file) == source
