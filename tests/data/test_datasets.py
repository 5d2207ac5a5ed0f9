"""Miniatures of the official datasets are read completely; differences from the lists have a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.datasets import DATASETS
from crisscross.data import file_list
from crisscross.data.catalog import check_batch, describe_data, manifest_directory, open_manifest, prepare
from crisscross.data.datasets import list_official
from crisscross.data.datasets.matching import read_classes
from crisscross.data.datasets.youtube import video_id, wrong_time
from crisscross.data.file_list import ListedClip
from crisscross.data.manifest import Manifest
from crisscross.data.prepare import __main__ as command
from crisscross.run.identity import scientific
from tests.data.miniatures import KINETICS_CLASSES, MINIATURES, data_overrides, make_miniature

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: make_miniature(name, tmp_path / name)


def data_node(name: str, root: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = compose("downstream", overrides=[*data_overrides(name, root), *overrides])
    return OmegaConf.to_container(config, resolve=True)["data"]


def prepared(name: str, root: Path, *overrides: str) -> tuple[dict[str, Any], Manifest]:
    data = prepare(data_node(name, root, *overrides), progress=False)
    return data, open_manifest(parse(DataSettings, data))


def listed(name: str, root: Path, *, annotations: Path | None = None, allow_missing: bool = True) -> list[ListedClip]:
    return list_official(name, root, annotations, allow_missing=allow_missing)


def problems(rows: list[ListedClip]) -> dict[str, str]:
    return {row.path: row.problem for row in rows if row.problem}


EXPECTED = {  # clips by split, rejected
    "kinetics400": ({"train": 12, "val": 6}, 0),
    "kinetics_sound": ({"train": 8, "val": 4}, 0),
    "audioset": ({"train": 12, "eval": 6}, 0),
    "ucf101": ({"train1": 12, "test1": 6, "train2": 12, "test2": 6, "train3": 12, "test3": 6}, 0),
    "hmdb51": ({"train1": 12, "test1": 6, "train2": 12, "test2": 6, "train3": 12, "test3": 6}, 3),
    "esc50": ({f"{side}{fold}": num for fold in range(1, 6) for side, num in (("train", 24), ("test", 6))}, 0),
    "dcase2013": ({"train": 9, "test": 9}, 0),
}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_is_read_completely(name: str, make: Callable[[str], Path]) -> None:
    data, manifest = prepared(name, make(name))
    by_split, num_rejected = EXPECTED[name]
    settings = parse(DataSettings, data)
    assert {split: len(manifest.split(split)) for split in by_split} == by_split
    assert len(manifest.rejected) == num_rejected
    assert set(settings.splits) == set(by_split)
    has = {"video": manifest.clips["video_start_s"].notna(), "audio": manifest.clips["audio_start_s"].notna()}
    assert all(has[stream].all() for stream in settings.require)
    assert set(settings.require) == set(DATASETS[name].require)
    for train, test in zip(settings.splits[::2], settings.splits[1::2], strict=True):
        learnt, tested = manifest.split(train), manifest.split(test)
        assert set(learnt["path"]).isdisjoint(tested["path"])
        assert set(learnt["label"]) == set(tested["label"]) == set(manifest.classes)
    if DATASETS[name].has_class_list:
        assert set(manifest.classes) < read_classes(name)
    assert prepare(data, progress=False) == data


def test_clips_without_audio(make: Callable[[str], Path]) -> None:
    root = make("ucf101")
    _, manifest = prepared("ucf101", root)
    silent = manifest.clips[manifest.clips["audio_start_s"].isna()]
    assert set(silent["label"]) == {"HandstandPushups"}
    assert len(silent) == 6
    data, heard = prepared("ucf101", root, "data.require=[video,audio]")
    assert heard.rejected["reason"].tolist() == ["no audio stream"] * 6
    assert "6 files rejected (6 x no audio stream)" in describe_data(data)
    shutil.copy(root / silent["path"].iloc[0], root / "gone.avi")
    kinetics = make("kinetics400")
    victim = sorted(kinetics.glob("train/*/*.mp4"))[0]
    victim.with_suffix(".avi").write_bytes((root / "gone.avi").read_bytes())
    victim.unlink()
    _, manifest = prepared("kinetics400", kinetics, "data.allow_missing=true")
    assert manifest.rejected["reason"].tolist() == ["no audio stream"]


def test_kinetics_sound_is_part_of_a_kinetics_tree(make: Callable[[str], Path]) -> None:
    root = make("kinetics_sound")
    _, manifest = prepared("kinetics_sound", root)
    assert manifest.classes == sorted(KINETICS_CLASSES[:2])
    extra = root / "train" / "abseiling" / "abcdefghijk_000001_000011.mp4"
    extra.touch()
    (root / "train" / "tap dancing" / "abcdefghijl.mp4").touch()
    assert problems(listed("kinetics_sound", root)) == {
        "train/tap dancing/abcdefghijl.mp4": "no official list names it"
    }
    assert len(problems(listed("kinetics400", root))) == 2
    assert read_classes("kinetics_sound") < read_classes("kinetics400")


def test_class_lists_have_their_sizes() -> None:
    sizes = {name: len(read_classes(name)) for name, known in DATASETS.items() if known.has_class_list}
    assert sizes == {
        "kinetics400": 400,
        "kinetics_sound": 32,
        "ucf101": 101,
        "hmdb51": 51,
        "esc50": 50,
        "dcase2013": 10,
    }


def test_kinetics_layouts(make: Callable[[str], Path]) -> None:
    """A flat folder, underscores for spaces, ids alone and another suffix give the same clips."""
    root = make("kinetics400")
    first = sorted((row.label, row.split) for row in listed("kinetics400", root))
    for file in sorted(root.glob("*/*/*.mp4")):
        if file.parts[-3] == "val":
            file.rename(root / "val" / file.name)
        elif file.name[0] == "-":
            folder = root / "train" / file.parent.name.replace(" ", "_")
            folder.mkdir(exist_ok=True)
            file.rename(folder / f"{video_id(file.name)}.mkv")
    (root / "annotations" / "val.csv").rename(root / "kinetics400_validate.csv")
    (root / "annotations" / "train.csv").rename(root / "kinetics400_train.csv")
    rows = listed("kinetics400", root, allow_missing=False)
    assert problems(rows) == {}
    assert sorted((row.label, row.split) for row in rows) == first
    assert any(row.path.endswith(".mkv") for row in rows)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("a/-_4T0xY7abc_000010_000020.mp4", "-_4T0xY7abc"),
        ("-_4T0xY7abc.wav", "-_4T0xY7abc"),
        ("Y-_4T0xY7abc.wav", "-_4T0xY7abc"),
        ("YYYYYYYYYYY.wav", "YYYYYYYYYYY"),
        ("YYYYYYYYYYYY.wav", "YYYYYYYYYYY"),
        ("Y4T0xY7abc__10_20.mkv", "Y4T0xY7abc_"),
        ("-_4T0xY7abc_30.000_40.000.mp4", "-_4T0xY7abc"),
        ("short.mp4", None),
        ("-_4T0xY7abc_train.mp4", None),
    ],
)
def test_names_cut_from_youtube(file: str, key: str | None) -> None:
    assert video_id(file) == key


@pytest.mark.parametrize("name", ["x_000030_000040", "x_30_40", "x_30000_40000", "x_30.0_40.0", "x_30.5_40"])
def test_times_in_names(name: str) -> None:
    file = name.replace("x", "-_4T0xY7abc") + ".mp4"
    assert wrong_time(file, 30.0) == ""
    assert wrong_time(file, 50.0).endswith("s by its name, at 50 s by the list")


def test_differences_from_the_lists_are_listed(make: Callable[[str], Path]) -> None:
    root = make("kinetics400")
    files = sorted(root.glob("train/playing accordion/*.mp4"))
    files[0].unlink()
    shutil.copy(files[1], files[1].with_suffix(".mkv"))
    moved = files[2].rename(root / "train" / "abseiling" / files[2].name)
    cut = files[3].rename(files[3].with_name(f"{video_id(files[3].name)}_000099_000109.mp4"))
    (root / "train" / "notes_on_this_copy.mp4").touch()
    found = problems(listed("kinetics400", root))
    start_s = int(files[3].stem.split("_")[-2])
    assert found == {
        files[0].relative_to(root).as_posix(): "missing",
        files[1].with_suffix(".mkv").relative_to(root).as_posix(): f"a second file of {files[1].relative_to(root)}",
        moved.relative_to(root).as_posix(): "lies in the folder of 'abseiling'",
        cut.relative_to(root).as_posix(): f"starts at 99 s by its name, at {start_s} s by the list",
        "train/notes_on_this_copy.mp4": "no official list names it",
    }


def test_missing_clips_are_rejected_and_can_return(make: Callable[[str], Path]) -> None:
    root = make("esc50")
    victim = root / "audio" / "1-100033-A-0.wav"
    content = victim.read_bytes()
    victim.unlink()
    data, manifest = prepared("esc50", root)  # 1 of 30 is within the tolerance
    assert manifest.rejected[["path", "reason"]].values.tolist() == [["audio/1-100033-A-0.wav", "missing"]]
    assert "1 files rejected (1 x missing)" in describe_data(data)
    victim.write_bytes(content)
    _, manifest = prepared("esc50", root)
    assert manifest.rejected.empty


def test_another_suffix_is_accepted(make: Callable[[str], Path]) -> None:
    for name, folder in (("esc50", "audio"), ("ucf101", "UCF-101")):
        root = make(name)
        for file in sorted((root / folder).rglob("*.*")):
            file.rename(file.with_suffix(".mkv"))
        assert problems(listed(name, root, allow_missing=False)) == {}


def test_lists_elsewhere(make: Callable[[str], Path], tmp_path: Path) -> None:
    root = make("hmdb51")
    lists = (root / "testTrainMulti_7030_splits").rename(tmp_path / "lists")
    first = listed("hmdb51", root, annotations=lists)
    assert len(first) == 21
    assert [row.label for row in listed("hmdb51", root / "hmdb51_org", annotations=lists)] == [
        row.label for row in first
    ]
    root = make("esc50")
    csv = (root / "meta" / "esc50.csv").rename(tmp_path / "mine.csv")
    assert len(listed("esc50", root, annotations=csv, allow_missing=False)) == 30


def test_dcase_without_lists_expects_ten_a_class(make: Callable[[str], Path]) -> None:
    root = make("dcase2013")
    (root / "meta.txt").unlink()
    rows = listed("dcase2013", root)
    assert sum(row.problem == "missing" for row in rows) == 200 - 18
    source = root / "scenes_stereo" / "bus01.wav"
    for folder in ("scenes_stereo", "scenes_stereo_testset"):
        for label in read_classes("dcase2013"):
            for number in range(10):
                (root / folder).joinpath(f"{label}{number + 1:02d}.wav").write_bytes(source.read_bytes()[:100])
    rows = listed("dcase2013", root, allow_missing=False)
    assert problems(rows) == {}
    assert {(row.label, row.split) for row in rows} == {
        (label, side) for label in read_classes("dcase2013") for side in ("train", "test")
    }


def test_folds_are_for_evaluations_only(make: Callable[[str], Path]) -> None:
    root = make("ucf101")
    data, manifest = prepared("ucf101", root, "data.folds=[2]")
    other, same = prepared("ucf101", root, "data.folds=[1,3]")
    assert manifest.directory == same.directory
    lists = (
        "lists: testlist01.txt, testlist02.txt, testlist03.txt, ..., which name 18 clips: officially there are 13320"
    )
    assert describe_data(data) == f"ucf101: 12 train2, 6 test2 clips of 3 classes ({lists})"
    assert scientific({"data": data}) != scientific({"data": other})
    assert scientific({"data": data, "method": {}}) == scientific({"data": other, "method": {}})
    moved = {**data, "annotations": "/elsewhere", "allow_missing": True, "root": "/there"}
    assert scientific({"data": data}) == scientific({"data": moved})


def test_pretraining_on_a_fold(make: Callable[[str], Path]) -> None:
    root = make("ucf101")
    training = {"draws_per_clip": 1, "global_batch_size": 4}
    data, _ = prepared("ucf101", root, "data.folds=[]", "data.train_split=train1", "data.test_split=test1")
    check_batch({"data": data, "training": training})
    with pytest.raises(
        ValueError, match=r"^downstream.training.global_batch_size=13 is larger than an epoch of 12 samples"
    ):
        check_batch({"data": data, "training": {**training, "global_batch_size": 13}}, node="downstream.training")
    data, _ = prepared("ucf101", root)
    with pytest.raises(ValueError, match="has no split 'train': choose from test1, test2, test3, train1"):
        check_batch({"data": data, "training": training})


def test_preparing_again_imports_nothing_heavy(make: Callable[[str], Path]) -> None:
    for name in ("ucf101", "kinetics_sound"):
        data, _ = prepared(name, make(name))
        code = (
            f"import sys; from crisscross.data.catalog import prepare; prepare({data!r}, progress=False)\n"
            "print(*(name for name in ('numpy', 'pandas', 'pyarrow', 'av', 'torch') if name in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert done.stdout.split() == []


def test_each_folder_is_listed_once(make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make("ucf101")
    calls: list[str] = []
    stat, scandir = os.stat, os.scandir

    def counting_stat(path: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(str(path))
        return stat(path, *arguments, **options)

    def counting_scandir(path: Any) -> Any:
        calls.append(str(path))
        return scandir(path)

    monkeypatch.setattr(file_list.os, "stat", counting_stat)
    monkeypatch.setattr(file_list.os, "scandir", counting_scandir)
    assert len(listed("ucf101", root)) == 18
    assert not [path for path in calls if path.endswith(".avi")]
    assert sum("UCF-101" in path for path in calls) <= 3 * (1 + 3)


def _kinetics_lists(root: Path, **clips: str) -> None:
    """Write lists, by name, each of one clip."""
    (root / "annotations").mkdir()
    for name, key in clips.items():
        file = root / "annotations" / f"{name}.csv"
        file.write_text(f"label,youtube_id,time_start,time_end,split\nabseiling,{key},0,10,x\n")


@pytest.mark.parametrize(
    ("lists", "read"),
    [
        (("train", "mini_train", "a-train", "val"), ["train", "val"]),
        (("kinetics_train", "validate", "old_val"), ["kinetics_train", "validate"]),
        (("train", "val", "validate", "my_val"), ["train", "val"]),
    ],
)
def test_of_several_lists_the_one_with_the_official_name_is_read(tmp_path: Path, lists: Any, read: list[str]) -> None:
    _kinetics_lists(tmp_path, **{name: f"{number:011d}" for number, name in enumerate(lists)})
    (tmp_path / "any.mp4").touch()
    used: list[Path] = []
    found = list_official("kinetics400", tmp_path, None, allow_missing=True, used=used)
    assert [path.stem for path in used] == read
    keys = {f"{lists.index(name):011d}" for name in read}
    assert {Path(row.path).name[:11] for row in found if row.problem == "missing"} == keys


@pytest.mark.parametrize("lists", [("mini_train", "full_train", "val"), ("train", "a_val", "b_validation")])
def test_several_lists_without_the_official_name_are_an_error(tmp_path: Path, lists: tuple[str, ...]) -> None:
    _kinetics_lists(tmp_path, **dict.fromkeys(lists, "a" * 11))
    (tmp_path / "any.mp4").touch()
    with pytest.raises(ValueError, match=r"has several lists of one split: .*\.csv, .*\.csv: keep one of them there"):
        list_official("kinetics400", tmp_path, None, allow_missing=True)


@pytest.mark.slow
def test_a_hundred_thousand_clips_are_listed_in_a_moment(tmp_path: Path) -> None:
    """The files are empty and none is opened."""
    rows = ["label,youtube_id,time_start,time_end,split"]
    (tmp_path / "train").mkdir()
    for number in range(20_000):
        key = f"{number:011d}"
        rows.append(f"abseiling,{key},0,10,train")
        (tmp_path / "train" / f"{key}_000000_000010.mp4").touch()
    (tmp_path / "train.csv").write_text("\n".join([*rows, *(f"zumba,b{n:010d},0,10,train" for n in range(80_000))]))
    (tmp_path / "val.csv").write_text(rows[0] + "\n")
    began = time.process_time()
    found = listed("kinetics400", tmp_path)
    seconds = time.process_time() - began
    assert pd.Series([row.problem for row in found]).value_counts().to_dict() == {"missing": 80_000, "": 20_000}
    assert seconds < 10  # 0.9 when this was written


@pytest.mark.parametrize("name", DATASETS)
def test_the_command_and_the_config_mean_the_same_manifest(name: str, tmp_path: Path) -> None:
    settings = parse(DataSettings, data_node(name, tmp_path))
    arguments = [name, "--root", str(tmp_path), "--manifest-root", settings.manifest_root]
    same = command._settings(command._parser().parse_args(arguments))
    assert same == settings
    assert manifest_directory(same) == manifest_directory(settings)
