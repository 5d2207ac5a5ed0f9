"""Manifests of small trees and lists of real container files: usable and rejected clips, and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crisscross.data import manifest as manifest_file
from crisscross.data import parallel, probe_files
from crisscross.data.build_manifest import build_manifest
from crisscross.data.file_list import ListedClip, assign_splits, merge_labels
from crisscross.data.manifest import CLIP_COLUMNS, read_manifest
from crisscross.data.manifest_summary import read_summary
from tests.data.clips import even_times_s, tone, write_clip
from tests.requirements import REAL_DATA, needs_real_data


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "good.mp4", times_s=even_times_s(25, 25), waveform=tone(440, 1, 44100))


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "silent.mp4", times_s=even_times_s(25, 25))


def fill(root: Path, clip: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / path)
    return root


def build(tmp_path: Path, **options):
    return build_manifest(tmp_path / "manifest", **{"progress": False, "jobs": 1, **options})


def reasons(manifest) -> dict[str, str]:
    return dict(zip(manifest.rejected["path"], manifest.rejected["reason"], strict=True))


class TestTrees:
    def test_split_class_file(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "train/b/1.mp4", "train/a/2.mp4", "test/a/3.mp4", "train/a/-x #1.MP4")
        manifest = build(tmp_path, root=root)
        assert list(manifest.clips.columns) == CLIP_COLUMNS
        assert manifest.clips["path"].tolist() == [
            "test/a/3.mp4",
            "train/a/-x #1.MP4",
            "train/a/2.mp4",
            "train/b/1.mp4",
        ]
        assert manifest.clips["clip_id"].tolist() == [0, 1, 2, 3]
        assert manifest.clips["label"].tolist() == ["a", "a", "a", "b"]
        assert manifest.clips["label_id"].tolist() == [0, 0, 0, 1]
        assert manifest.clips["split"].tolist() == ["test", "train", "train", "train"]
        assert manifest.classes == ["a", "b"]
        assert manifest.rejected.empty
        row = manifest.clips.iloc[0]
        assert (row.height, row.width, row.audio_rate_hz, row.frame_rate_hz) == (48, 80, 44100, 25)
        assert row[["video_start_s", "video_end_s", "audio_start_s"]].tolist() == pytest.approx([0, 1, 0], abs=1e-3)
        assert row.size_bytes == clip.stat().st_size

    def test_class_file_is_split_by_hash(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, *(f"{label}/{n}.mp4" for label in "ab" for n in range(5)), "c/0.mp4")
        manifest = build(tmp_path, root=root)
        counts = manifest.clips.groupby(["label", "split"]).size().to_dict()
        assert counts == {("a", "test"): 2, ("a", "train"): 3, ("b", "test"): 2, ("b", "train"): 3, ("c", "train"): 1}

    def test_files_that_do_not_belong(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a/1.mp4", "b/2.mp4", "stray.mp4", "a/deep/er.mp4", "a/.hidden.mp4")
        (root / "a" / "notes.txt").write_text("not a clip")
        manifest = build(tmp_path, root=root)
        assert manifest.clips["path"].tolist() == ["a/1.mp4", "b/2.mp4"]
        assert reasons(manifest) == dict.fromkeys(["stray.mp4", "a/deep/er.mp4"], "not at <class>/<file>")

    def test_bad_files_are_listed_with_the_reason(self, tmp_path, clip, silent):
        root = fill(tmp_path / "data", clip, "train/a/good.mp4")
        fill(root, silent, "train/a/silent.mp4")
        (root / "train/a/empty.mp4").touch()
        (root / "train/a/page.mp4").write_text("<html>" * 50)
        manifest = build(tmp_path, root=root)
        assert reasons(manifest) == {
            "train/a/empty.mp4": "empty file (0 bytes)",
            "train/a/page.mp4": "cannot open: Invalid data found when processing input",
            "train/a/silent.mp4": "no audio stream",
        }
        video_alone = build(tmp_path, root=root, require=("video",))
        assert "train/a/silent.mp4" in video_alone.clips["path"].tolist()
        assert np.isnan(video_alone.clips.set_index("path").loc["train/a/silent.mp4", "audio_start_s"])

    def test_a_name_that_is_not_utf8_is_rejected_by_name(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a/1.mp4")
        shutil.copy(clip, os.fsencode(root) + b"/a/\xff.mp4")
        assert list(reasons(build(tmp_path, root=root)).values()) == ["the name is not UTF-8: rename the file"]


class TestLists:
    def write(self, folder: Path, text: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "list.csv").write_bytes(text.encode())
        return folder / "list.csv"

    def test_splits_are_used_as_they_are(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "x 'y'/1.mp4", "2.mp4", "3.mp4")
        text = "\ufefffile,cls,fold\r\n\"x 'y'/1.mp4\",dog,1\r\n2.mp4,cat,2\r\n3.mp4,NA,val\r\n"
        csv = self.write(root, text)
        manifest = build(tmp_path, root=None, csv=csv, label_column="cls", split_column="fold")
        assert manifest.root == root
        assert manifest.clips[["path", "label", "split"]].values.tolist() == [
            ["2.mp4", "cat", "2"],
            ["3.mp4", "NA", "val"],
            ["x 'y'/1.mp4", "dog", "1"],
        ]

    def test_files_are_found_under_the_root_or_next_to_the_list(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a.mp4", "lists/b.mp4")
        csv = self.write(root / "lists", f"file,label\na.mp4,x\nb.mp4,x\n{root / 'a.mp4'},x\n")
        manifest = build(tmp_path, root=root, csv=csv)
        assert manifest.clips["path"].tolist() == ["a.mp4", "lists/b.mp4"]
        assert reasons(manifest) == {"a.mp4": "listed more than once"}
        assert sorted(manifest.clips["split"]) == ["test", "train"]

    def test_rows_that_cannot_be_used(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a.mp4", "b.mp4", "c.mp4")
        csv = self.write(root, "file,label,split\na.mp4,x,train\nb.mp4,,train\nc.mp4,x,\ngone.mp4,x,train\n,x,train\n")
        assert reasons(build(tmp_path, root=root, csv=csv)) == {
            "": "no file name",
            "b.mp4": "no label",
            "c.mp4": "no split",
            "gone.mp4": "file missing",
        }


class TestMemberships:
    """A clip may belong to several splits, as with folds."""

    def test_a_split_has_the_clips_that_name_it(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "1.mp4", "2.mp4", "3.mp4")
        rows = "1.mp4,x,train1+test2\n2.mp4,x,test1+train2\n3.mp4,x,train1+train2\n"
        (root / "list.csv").write_text("file,label,split\n" + rows)
        manifest = build(tmp_path, root=root, csv=root / "list.csv")
        assert {name: manifest.split(name)["path"].tolist() for name in ("train1", "test1", "train2", "test2")} == {
            "train1": ["1.mp4", "3.mp4"],
            "test1": ["2.mp4"],
            "train2": ["2.mp4", "3.mp4"],
            "test2": ["1.mp4"],
        }
        summary = json.loads((tmp_path / "manifest" / "manifest.json").read_text())
        assert summary["num_by_split"] == {"test1": 1, "test2": 1, "train1": 2, "train2": 2}
        with pytest.raises(ValueError, match="has no split 'train': choose from test1, test2, train1, train2"):
            manifest.split("train")


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "options", "error", "message"),
        [
            (None, {"root": "gone"}, FileNotFoundError, "the data folder .*gone does not exist: give the folder"),
            ("empty", {"root": "data"}, ValueError, "data is empty: expected <split>/<class>/<file>"),
            ("text", {"root": "data"}, ValueError, "data holds no media files: expected"),
            (None, {"root": None}, ValueError, "neither root nor csv is given: give"),
            ("empty", {"root": "data", "csv": "no.csv"}, FileNotFoundError, r"the list .*no\.csv does not exist: give"),
            (
                "csv",
                {"csv": "data/l.csv", "label_column": "kind"},
                ValueError,
                "no column 'kind' for the label: it has file, cls",
            ),
            (
                "csv",
                {"csv": "data/l.csv", "file_column": "f"},
                ValueError,
                "no column 'f' for the file: it has file, cls",
            ),
            (
                "csv",
                {"csv": "data/l.csv", "label_column": "cls", "split_column": "split1"},
                ValueError,
                "no column 'split1' for the split: it has file, cls",
            ),
            ("header", {"csv": "data/l.csv"}, ValueError, "a header but no rows: expected one row a clip"),
            ("nothing", {"csv": "data/l.csv"}, ValueError, "cannot be read as CSV .*: save it as UTF-8 with a header"),
            ("bad clip", {"root": "data"}, ValueError, r"none of the 1 files .* \(1 x empty file \(0 bytes\)\): see"),
            ("empty", {"root": "data", "require": ()}, ValueError, "require must name some of"),
            ("empty", {"root": "data", "test_fraction": 1.0}, ValueError, r"must be in \[0, 1\), got 1\.0: 0\.3 makes"),
            (
                "empty",
                {"root": "data", "val_fraction": 0.7},
                ValueError,
                r"in \[0, 0\.7\), got 0\.7, as test_fraction",
            ),
        ],
    )
    def test_each_mistake_is_one_line_with_a_remedy(self, tmp_path, make, options, error, message):
        data = tmp_path / "data"
        if make is not None:
            (data / "a").mkdir(parents=True) if make == "bad clip" else data.mkdir()
        contents = {"csv": "file,cls\na.mp4,x\n", "header": "file,label\n", "nothing": "", "text": "words"}
        if make in contents:
            (data / ("notes.txt" if make == "text" else "l.csv")).write_text(contents[make])
        if make == "bad clip":
            (data / "a" / "0.mp4").touch()
        paths = {key: tmp_path / value for key, value in options.items() if key in ("root", "csv") and value}
        with pytest.raises(error, match=message) as caught:
            build(tmp_path, **{"root": None, **options, **paths})
        assert "\n" not in str(caught.value)

    def test_unknown_split(self, tmp_path, clip):
        manifest = build(tmp_path, root=fill(tmp_path / "data", clip, "train/a/1.mp4", "test/a/2.mp4"))
        assert manifest.split("train")["path"].tolist() == ["train/a/1.mp4"]
        with pytest.raises(ValueError, match="has no split 'val': choose from test, train"):
            manifest.split("val")

    def test_no_manifest(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no manifest in .*: build one with"):
            read_manifest(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no manifest in"):
            read_summary(tmp_path)

    def test_missing_clips_are_counted_and_named(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, *(f"a/{n}.mp4" for n in range(5)))
        build(tmp_path, root=root)
        for n in range(1, 5):
            (root / f"a/{n}.mp4").unlink()
        text = r"4 clips of the manifest .* \(a/1\.mp4, a/2\.mp4, a/3\.mp4, \.\.\.\): put them back, or build"
        with pytest.raises(FileNotFoundError, match=text):
            read_manifest(tmp_path / "manifest")
        assert len(read_manifest(tmp_path / "manifest", check_files=False).clips) == 5

    def test_files_that_do_not_belong_together(self, tmp_path, clip, monkeypatch):
        manifest = build(tmp_path, root=fill(tmp_path / "data", clip, "a/1.mp4", "a/2.mp4"))
        monkeypatch.setattr(manifest_file, "READ_ATTEMPTS", 1)
        manifest.clips.iloc[:1].to_parquet(tmp_path / "manifest" / "clips.parquet")
        with pytest.raises(ValueError, match="do not belong together: build it again"):
            read_manifest(tmp_path / "manifest")


class TestStorage:
    def test_reading_gives_what_was_built(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a/1.mp4", "b/2.mp4")
        (root / "a/empty.mp4").touch()
        built = build(tmp_path, root=root)
        read = read_manifest(tmp_path / "manifest")
        pd.testing.assert_frame_equal(built.clips, read.clips)
        pd.testing.assert_frame_equal(built.rejected, read.rejected)
        assert (read.root, read.classes, read.data_hash) == (root, ["a", "b"], built.data_hash)
        assert read_summary(tmp_path / "manifest")["fingerprint"] == built.data_hash
        summary = json.loads((tmp_path / "manifest" / "manifest.json").read_text())
        assert (summary["num_clips"], summary["num_rejected"]) == (2, 1)
        left_over = {path.name for path in (tmp_path / "manifest").iterdir()} - {"manifest.lock"}
        assert left_over == {"clips.parquet", "rejected.parquet", "manifest.json", "probed.parquet"}

    def test_data_hash_depends_on_the_clips_not_on_place_or_time(self, tmp_path, clip, silent):
        root = fill(tmp_path / "data", clip, "train/a/1.mp4", "test/a/2.mp4")
        first = build(tmp_path, root=root).data_hash
        root.rename(tmp_path / "moved")
        os.utime(tmp_path / "moved" / "train/a/1.mp4", (1, 1))
        assert build(tmp_path, root=tmp_path / "moved").data_hash == first
        shutil.move(tmp_path / "moved/test/a/2.mp4", tmp_path / "moved/train/a/2.mp4")
        assert build(tmp_path, root=tmp_path / "moved").data_hash != first

    def test_the_root_may_move_after_building(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a/1.mp4")
        build(tmp_path, root=root)
        root.rename(tmp_path / "moved")
        assert read_manifest(tmp_path / "manifest", root=tmp_path / "moved").root == tmp_path / "moved"

    def test_rebuilding_probes_only_what_changed(self, tmp_path, clip, silent, monkeypatch):
        root = fill(tmp_path / "data", clip, "a/1.mp4", "a/2.mp4")
        fill(root, silent, "a/3.mp4")
        probed = []
        original = probe_files.probe_one
        monkeypatch.setattr(probe_files, "probe_one", lambda r, p, t: probed.append(p) or original(r, p, t))
        first = build(tmp_path, root=root)
        assert probed == ["a/1.mp4", "a/2.mp4", "a/3.mp4"]
        probed.clear()
        second = build(tmp_path, root=root)
        assert probed == []
        pd.testing.assert_frame_equal(first.clips, second.clips)
        assert second.rejected["reason"].tolist() == ["no audio stream"]
        shutil.copy(clip, root / "a/3.mp4")
        fill(root, clip, "a/4.mp4")
        (root / "a/1.mp4").unlink()
        third = build(tmp_path, root=root)
        assert probed == ["a/3.mp4", "a/4.mp4"]
        assert third.clips["path"].tolist() == ["a/2.mp4", "a/3.mp4", "a/4.mp4"]
        probed.clear()
        build(tmp_path, root=root, thorough=True)
        assert len(probed) == 3
        build(tmp_path, root=root)
        assert len(probed) == 3, "what was found by looking closer holds"

    def test_a_corrupt_probe_table_is_probed_again(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, "a/1.mp4")
        first = build(tmp_path, root=root)
        (tmp_path / "manifest" / "probed.parquet").write_bytes(b"PAR1 torn")
        assert build(tmp_path, root=root).data_hash == first.data_hash


class TestProcesses:
    @pytest.mark.slow
    def test_many_processes_give_the_same(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, *(f"{n % 3}/{n}.mp4" for n in range(probe_files.FEW_FILES + 10)))
        alone = build(tmp_path, root=root)
        together = build_manifest(tmp_path / "second", root=root, jobs=2, progress=False)
        pd.testing.assert_frame_equal(alone.clips, together.clips)

    @pytest.mark.slow
    def test_two_builds_at_once(self, tmp_path, clip):
        root = fill(tmp_path / "data", clip, *(f"{n % 3}/{n}.mp4" for n in range(12)))
        command = [sys.executable, "-m", "crisscross.data.prepare", "folder", "--root", str(root)]
        command += ["--manifest-root", str(tmp_path / "m")]
        builds = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for process in builds:
            out, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
            assert "12 clips of 3 classes (3 test, 9 train)" in out
        (directory,) = (tmp_path / "m").iterdir()
        assert len(read_manifest(directory).clips) == 12

    def test_a_file_that_kills_its_process_is_rejected(self, tmp_path, clip, monkeypatch):
        class Fragile(ThreadPoolExecutor):
            def submit(self, work, *args):
                future = Future()
                dies = self._max_workers > 1 or args == (paths[3],)
                future.set_exception(BrokenProcessPool()) if dies else future.set_result(work(*args))
                return future

        paths = [f"a/{n}.mp4" for n in range(probe_files.FEW_FILES + 1)]
        root = fill(tmp_path / "data", clip, *paths)
        monkeypatch.setattr(parallel, "_worker_pool", Fragile)
        manifest = build(tmp_path, root=root, jobs=2)
        assert len(manifest.clips) == len(paths) - 1
        assert reasons(manifest) == {paths[3]: "crashes the decoder"}


def test_a_label_in_two_unicode_forms_is_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    rows = [ListedClip("1.mp4", composed, None), ListedClip("2.mp4", decomposed, None), ListedClip("3.mp4", "a", None)]
    assert [row.label for row in merge_labels(rows)] == [composed, composed, "a"]
    assert merge_labels(rows[1:]) == rows[1:]  # one form alone stays, and with it the dataset's hash


class TestSplits:
    def test_depends_on_paths_alone(self):
        clips = [ListedClip(f"a/{n}.mp4", "a", None) for n in range(20)]
        forward = {row.path: row.split for row in assign_splits(clips, test_fraction=0.3)}
        backward = {row.path: row.split for row in assign_splits(clips[::-1], test_fraction=0.3)}
        assert forward == backward
        assert list(forward.values()).count("test") == 6

    @pytest.mark.parametrize(
        ("num_clips", "test_fraction", "num_test"),
        [(1, 0.3, 0), (2, 0.3, 1), (2, 0.9, 1), (3, 0.01, 1), (10, 0.3, 3), (10, 0.0, 0), (1, 0.9, 0)],
    )
    def test_both_sides_get_a_clip(self, num_clips, test_fraction, num_test):
        clips = [ListedClip(f"{n}.mp4", "a", None) for n in range(num_clips)]
        splits = [row.split for row in assign_splits(clips, test_fraction=test_fraction)]
        assert splits.count("test") == num_test

    def test_a_validation_split_leaves_the_test_as_it_was(self):
        clips = [ListedClip(f"{label}/{n}.mp4", label, None) for label in "ab" for n in range(20)]
        alone = {row.path: row.split for row in assign_splits(clips, test_fraction=0.3)}
        splits = {row.path: row.split for row in assign_splits(clips, test_fraction=0.3, val_fraction=0.2)}
        assert [path for path in splits if splits[path] == "test"] == [path for path in alone if alone[path] == "test"]
        for label in "ab":
            mine = [split for path, split in splits.items() if path.startswith(label)]
            assert [mine.count(name) for name in ("train", "val", "test")] == [10, 4, 6]

    @pytest.mark.parametrize(
        ("num_clips", "counts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (100, (50, 20, 30))]
    )
    def test_one_clip_of_a_class_stays_for_training(self, num_clips, counts):
        clips = [ListedClip(f"{n}.mp4", "a", None) for n in range(num_clips)]
        splits = [row.split for row in assign_splits(clips, test_fraction=0.3, val_fraction=0.2)]
        assert tuple(map(splits.count, ("train", "val", "test"))) == counts

    def test_given_splits_are_kept(self):
        clips = [ListedClip("1.mp4", "a", "val"), ListedClip("2.mp4", "a", None)]
        assert [row.split for row in assign_splits(clips, test_fraction=0.5)] == ["val", "train"]


@pytest.mark.slow
class TestRealFiles:
    pytestmark = needs_real_data

    def test_ucf101_has_audio_in_four_classes(self, tmp_path):
        folder = Path(REAL_DATA) / "video" / "ucf101"
        columns = {"label_column": "cls", "split_column": "split1"}
        manifest = build(tmp_path, root=folder, csv=folder / "ucf101.csv", jobs=None, **columns)
        assert (len(manifest.clips), len(manifest.classes)) == (79, 4)
        assert set(manifest.rejected["reason"]) == {"no audio stream"}
        video = build(tmp_path, root=folder, csv=folder / "ucf101.csv", require=("video",), **columns)
        assert (len(video.clips), len(video.rejected)) == (167, 0)
