"""The official lists and real files of the datasets, if they are available."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.datasets import hmdb51, list_official, ucf101
from crisscross.data.datasets.matching import MISSING, missing_by_split, read_classes
from crisscross.data.file_list import ListedClip
from tests.data.test_datasets import data_node
from tests.requirements import REAL_DATA, needs_real_data

pytestmark = needs_real_data
DATA = Path(REAL_DATA or "none")
SPLITS = DATA / "splits"


def real(name: str, tmp_path: Path, root: Path, annotations: Path):
    node = data_node(name, tmp_path / "m", f"data.root={root}", f"data.annotations={annotations}")
    data = prepare({**node, "allow_missing": True}, progress=False)
    return open_manifest(parse(DataSettings, data))


def _sources(rows: list[ListedClip], source_of: Callable[[str], str | None]) -> int:
    """Count the source videos in the names; check that each is on one side of every official fold."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[source_of(row.path)].update(row.split.split("+"))
    assert None not in splits
    assert not [source for source, names in splits.items() for k in "123" if {f"train{k}", f"test{k}"} <= names]
    return len(splits)


def test_ucf101_lists() -> None:
    rows = list_official("ucf101", DATA / "video" / "ucf101", SPLITS / "ucf101", allow_missing=True)
    totals = {name: total for name, (_, total) in missing_by_split(rows).items()}
    assert totals == {
        "train1": 9537,
        "test1": 3783,
        "train2": 9586,
        "test2": 3734,
        "train3": 9624,
        "test3": 3696,
    }
    assert len(rows) == 13320
    assert _sources(rows, ucf101.source_of) == 101 * 25
    assert {row.label for row in rows} == read_classes("ucf101")
    assert Counter(row.problem for row in rows) == {"": 167, MISSING: 13320 - 167}


def test_ucf101_files(tmp_path: Path) -> None:
    """Each is accepted, with or without audio, on the official side of each split."""
    manifest = real("ucf101", tmp_path, DATA / "video" / "ucf101", SPLITS / "ucf101")
    clips = manifest.clips.set_index("path")
    table = pd.read_csv(DATA / "video" / "ucf101" / "ucf101.csv").set_index("file")
    assert (len(clips), int(clips["audio_start_s"].notna().sum())) == (167, 79)
    assert set(manifest.rejected["reason"]) == {MISSING}
    for path, split in clips["split"].items():
        assert set(split.split("+")) == {f"{table.loc[path, f'split{fold}']}{fold}" for fold in (1, 2, 3)}


def test_hmdb51_lists() -> None:
    rows = list_official("hmdb51", DATA / "video" / "hmdb51", SPLITS / "hmdb51", allow_missing=True)
    totals = {name: total for name, (_, total) in missing_by_split(rows).items()}
    assert totals == {f"{side}{k}": num for side, num in (("train", 3570), ("test", 1530)) for k in (1, 2, 3)}
    assert len(rows) == 6766
    assert _sources(rows, hmdb51.source_of) == 2291
    assert {row.label for row in rows} == read_classes("hmdb51")


def test_hmdb51_files(tmp_path: Path) -> None:
    manifest = real("hmdb51", tmp_path, DATA / "video" / "hmdb51", SPLITS / "hmdb51")
    assert len(manifest.clips) == 7
    assert manifest.clips["audio_start_s"].isna().all()
    assert set(manifest.rejected["reason"]) == {MISSING, "used by no fold"}


def test_esc50_list() -> None:
    rows = list_official("esc50", DATA / "audio" / "esc10", SPLITS / "esc50" / "esc50.csv", allow_missing=True)
    assert len(rows) == 2000
    assert {row.label for row in rows} == read_classes("esc50")
    assert missing_by_split(rows) == {
        **{f"test{k}": (320, 400) for k in range(1, 6)},
        **{f"train{k}": (1280, 1600) for k in range(1, 6)},
    }


def test_esc10_as_esc50(tmp_path: Path) -> None:
    """The files are FLAC; the names in their CSV end in .wav."""
    folder = DATA / "audio" / "esc10"
    manifest = real("esc50", tmp_path, folder, folder / "esc10.csv")
    assert (len(manifest.clips), len(manifest.rejected), len(manifest.classes)) == (400, 0, 10)
    for fold in range(1, 6):
        assert (len(manifest.split(f"train{fold}")), len(manifest.split(f"test{fold}"))) == (320, 80)
        assert manifest.split(f"test{fold}")["path"].str.startswith(f"audio/{fold}-").all()


def test_audioset_lists(tmp_path: Path) -> None:
    (tmp_path / "--4gqARaEJE.mp4").touch()
    rows = list_official("audioset", tmp_path, SPLITS / "audioset", allow_missing=True)
    assert missing_by_split(rows) == {"eval": (20370, 20371), "train": (22160, 22160)}
    assert "Speech" in {row.label for row in rows}


def test_kinetics_lists(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_bytes((SPLITS / "kinetics" / f"tiny_{name}.csv").read_bytes())
    (tmp_path / "-3B32lodo2M_000059_000069.mp4").touch()
    rows = list_official("kinetics400", tmp_path, None, allow_missing=True)
    assert missing_by_split(rows) == {"train": (400, 400), "val": (399, 400)}
    assert {row.label for row in rows} == read_classes("kinetics400")
    with pytest.raises(ValueError, match="799 of the 800 clips of kinetics400 are missing"):
        list_official("kinetics400", tmp_path, None, allow_missing=False)
    rows = list_official("kinetics_sound", tmp_path, None, allow_missing=True)
    assert {row.label for row in rows} == read_classes("kinetics_sound")
