"""Errors in official datasets: each is one line with got, expected and remedy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings, PretrainSettings
from crisscross.data.catalog import prepare
from crisscross.data.datasets import list_official
from tests.data.miniatures import data_overrides, make_miniature
from tests.data.test_datasets import REPOSITORY, data_node


def _replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        text = (root / path).read_bytes()
        assert old.encode() in text
        (root / path).write_bytes(text.replace(old.encode(), new.encode(), 1))

    return act


def _rename(path: str, name: str) -> Callable[[Path], None]:
    return lambda root: (root / path).rename((root / path).with_name(name))


def _remove(*paths: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for path in paths:
            shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

    return act


LISTS = "ucfTrainTestlist"
SPLITS = "testTrainMulti_7030_splits"
MISTAKES = {
    "no list of a fold": (
        "ucf101",
        _remove(f"{LISTS}/testlist03.txt"),
        rf"data\.annotations=null: .*{LISTS} has no testlist03\.txt: expected trainlist01.*of ucf101; set data\.annot",
    ),
    "no lists": ("ucf101", _remove(LISTS), r"has no official list: expected trainlist01\.txt to .*set data\.annotat"),
    "no list of a class": (
        "hmdb51",
        _remove(*(f"{SPLITS}/climb_test_split{fold}.txt" for fold in (1, 2, 3))),
        r"has no climb_test_split1\.txt: expected <class>_test_split1\.txt to .*of hmdb51; set",
    ),
    "no validation list": ("kinetics400", _remove("annotations/val.csv"), r"has no val\.csv: expected train\.csv and"),
    "no training segments": (
        "audioset",
        _remove("balanced_train_segments.csv"),
        r"has no balanced_train_segments\.csv: expected",
    ),
    "no class labels": ("audioset", _remove("class_labels_indices.csv"), r"has no class_labels_indices\.csv: expected"),
    "no csv": ("esc50", _remove("meta/esc50.csv"), r"has no official list: expected esc50\.csv of esc50; set"),
    "a class folder misspelt": (
        "ucf101",
        _rename("UCF-101/PlayingViolin", "PlayngViolin"),
        r"the folder UCF-101/PlayngViolin is named after no class of ucf101: did you mean 'PlayingViolin'\? Rename it",
    ),
    "a class folder in other letters": (
        "hmdb51",
        _rename("hmdb51_org/brush_hair", "Brush_Hair"),
        r"the folder hmdb51_org/Brush_Hair is named after no class .* did you mean 'brush_hair'\? Rename it",
    ),
    "a kinetics folder misspelt": (
        "kinetics_sound",
        lambda root: [_rename(f"{split}/tap dancing", "tap_dancng")(root) for split in ("train", "val")],
        r"the folder train/tap_dancng is named after no class .* did you mean 'tap dancing'\? Rename it",
    ),
    "a label of another list": (
        "ucf101",
        _replace(f"{LISTS}/testlist02.txt", "PlayingViolin/", "PlayingViolins/"),
        r"testlist02\.txt, line \d+: the label 'PlayingViolins' is none of the 101 classes of ucf101"
        r" \(did you mean 'PlayingViolin'\?\): correct the list",
    ),
    "a kinetics label": (
        "kinetics_sound",
        _replace("annotations/train.csv", "abseiling", "abseilin"),
        r"train\.csv, line 10: the label 'abseilin' is none of the 400 classes of kinetics400 \(did you mean 'abseil",
    ),
    "an esc-50 label": (
        "esc50",
        _replace("meta/esc50.csv", "hand_saw", "handsaw"),
        r"esc50\.csv, line 22: the label 'handsaw' is none of the 50 classes of esc50 \(did you mean 'hand_saw'\?\)",
    ),
    "an unknown mid": (
        "audioset",
        _replace("eval_segments.csv", "/m/09x0r", "/m/nothing"),
        r"eval_segments\.csv, line 3: the label '/m/nothing' is not in class_labels_indices\.csv: give the original",
    ),
    "a dcase name": (
        "dcase2013",
        lambda root: [_remove("meta.txt")(root), _rename("scenes_stereo/bus01.wav", "buss01.wav")(root)],
        r"scenes_stereo/buss01\.wav: the label 'buss' is none of the 10 classes of dcase2013 \(did you mean 'bus'\?\)",
    ),
    "a class that lists have and the dataset has not": (
        "hmdb51",
        lambda root: [_rename(f"{SPLITS}/climb_test_split{k}.txt", f"clim_test_split{k}.txt")(root) for k in (1, 2, 3)],
        r"the label 'clim' is none of the 51 classes of hmdb51 \(did you mean 'climb'\?\)",
    ),
    "a fold in the csv": (
        "esc50",
        _replace("meta/esc50.csv", ".wav,3,", ".wav,6,"),
        r"esc50\.csv, line 6: fold '6': expected 1 to 5; give the original list",
    ),
    "trained and tested": (
        "ucf101",
        _replace(f"{LISTS}/trainlist01.txt", "_g02_c01.avi", "_g01_c01.avi"),
        r"testlist01\.txt, line 1: .*_g01_c01\.avi is listed twice for fold 1: give the original lists",
    ),
    "another code": (
        "hmdb51",
        _replace(f"{SPLITS}/climb_test_split1.txt", ".avi 2 ", ".avi 7 "),
        r"climb_test_split1\.txt, line 1: '.*\.avi 7' does not end in 0, 1 or 2: give the original list",
    ),
    "another table": (
        "kinetics400",
        _replace("annotations/val.csv", "youtube_id", "id"),
        r"val\.csv has no column 'youtube_id': got label, id, time_start, .*; give the original",
    ),
    "a short row": (
        "kinetics400",
        _replace("annotations/val.csv", ",0,10,val,0", ""),
        r"val\.csv, line 2: 2 fields, expected 6",
    ),
    "times that are none": (
        "kinetics400",
        _replace("annotations/val.csv", ",0,10,", ",zero,10,"),
        r"val\.csv, line 2: 'zero' to '10' are no seconds: give the original list",
    ),
    "segments that are none": (
        "audioset",
        _replace("eval_segments.csv", ", 0.000, 10.000", ""),
        r"eval_segments\.csv, line 3: .* is not id, start, end, labels: give the original list",
    ),
    "a list that is no text": (
        "ucf101",
        lambda root: (root / LISTS / "testlist01.txt").write_bytes(b"\xff\xfe\x00"),
        r"testlist01\.txt is not text \(.*\): give the original list, as UTF-8",
    ),
    "no files": (
        "dcase2013",
        _remove("scenes_stereo", "scenes_stereo_testset"),
        r"data\.root=.*dcase2013 holds no media files: expected scenes_stereo/<class>NN\.wav and .*; give the folder",
    ),
    "half a download": (
        "ucf101",
        _remove(*(f"UCF-101/PlayingViolin/v_PlayingViolin_g0{group}_c01.avi" for group in (1, 2))),
        r"data\.root=.*: 2 of the 18 clips of ucf101 are missing, such as UCF-101/PlayingViolin/v_PlayingViolin_g0.*,"
        r" .* \(expected UCF-101/<Class>/v.*; at most 5% may be missing\): get the rest, or set data\.allow_miss",
    ),
    "a class not downloaded": (
        "kinetics400",
        _remove("train/abseiling", "val/abseiling"),
        r"6 of the 18 clips of kinetics400 are missing, among them all of 1 classes \(abseiling\), such as train/absei",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line(mistake: str, tmp_path: Path) -> None:
    name, spoil, message = MISTAKES[mistake]
    root = make_miniature(name, tmp_path / name)
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        prepare(data_node(name, root), progress=False)
    assert "\n" not in str(caught.value)


def test_a_mistake_made_after_preparing_is_an_error_too(tmp_path: Path) -> None:
    root = make_miniature("ucf101", tmp_path / "ucf101")
    data = prepare(data_node("ucf101", root), progress=False)
    shutil.rmtree(root / "UCF-101" / "PlayingViolin")
    with pytest.raises(ValueError, match=r"6 of the 18 clips of ucf101 are missing, among them all of 1 classes"):
        prepare(data, progress=False)
    data = prepare({**data, "allow_missing": True}, progress=False)
    with pytest.raises(ValueError, match="6 of the 18 clips"):  # the manifest exists, built with allow_missing
        prepare({**data, "allow_missing": False}, progress=False)


def test_missing_annotations(tmp_path: Path) -> None:
    root = make_miniature("esc50", tmp_path / "esc50")
    with pytest.raises(FileNotFoundError, match=r"data\.annotations=.*gone: no such file or folder: give where esc50"):
        list_official("esc50", root, tmp_path / "gone", allow_missing=False)


def test_a_single_file_where_many_lists_are_needed(tmp_path: Path) -> None:
    root = make_miniature("hmdb51", tmp_path / "hmdb51")
    file = root / SPLITS / "climb_test_split1.txt"
    assert len(list_official("hmdb51", root, file, allow_missing=False)) == 21


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=ucf101"], r"data\.root is not set: ucf101 expects UCF-101/<Class>/.*; set data\.root=DIR"),
        (
            ["data=ucf101", "data.root=x", "data.folds=[4]"],
            r"data\.folds=\[4\]: ucf101 has no fold 4; it has folds 1, ",
        ),
        (
            ["data=dcase2013", "data.root=x", "data.folds=[1]"],
            r"dcase2013 has no fold 1; it has no folds: set",
        ),
        (["data=esc50", "data.root=x", "data.folds=[2,2]"], r"data\.folds=\[2, 2\] names a fold twice: name each once"),
        (["data=ucf101", "data.root=x", "data.require=[]"], r"data\.require=\[\]: "),
        (["data=ucf101", "data.root=x", "data.require=[sound]"], r"data\.require\.0=sound: expected video or audio"),
    ],
)
def test_impossible_settings(overrides: list[str], message: str) -> None:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("downstream", overrides=overrides), resolve=True)
    with pytest.raises(ValueError, match=message):
        parse(DownstreamSettings, config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"data\.require=\[video\]: this pretraining learns from video and audio: set data"),
        (
            ["data.require=[audio,video]"],
            r"data\.folds=\[1, 2, 3\]: pretraining takes one split: set data\.folds=\[\] data\.train_split=train1",
        ),
    ],
)
def test_pretraining_on_a_dataset_of_folds(overrides: list[str], message: str) -> None:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = compose("pretrain", overrides=["data=ucf101", "data.root=x", *overrides])
    with pytest.raises(ValueError, match=message):
        parse(PretrainSettings, OmegaConf.to_container(config, resolve=True))


@pytest.mark.slow
def test_a_dry_run_reports_it(tmp_path: Path) -> None:
    root = make_miniature("kinetics_sound", tmp_path / "ks")
    (root / "annotations" / "val.csv").unlink()
    code = "import sys; from launch.main import main; sys.exit(main('relaxation'))"
    overrides = [*data_overrides("kinetics_sound", root), f"runs_root={tmp_path / 'runs'}", "dry_run=true"]
    done = subprocess.run([sys.executable, "-c", code, *overrides], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.annotations=null: ")
    assert "has no val.csv: expected train.csv and val.csv" in line
