"""Compact copies of datasets: nothing is lost silently; resumable; several processes share the work."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data import parallel
from crisscross.data.build_manifest import build_manifest
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.manifest import Manifest
from crisscross.data.prepare import compact
from crisscross.data.prepare.__main__ import main as prepare_main
from crisscross.data.prepare.compact_encode import CompactSettings
from tests.data.clips import even_times_s, tone, write_clip
from tests.data.copies import SETTINGS
from tests.data.miniatures import data_overrides, make_miniature
from tests.processes import kill_when, run_at_once


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Clips of every kind; one of them is damaged where building the manifest does not look."""
    root = tmp_path_factory.mktemp("source")
    both = write_clip(root / "train/a/1.mp4", times_s=even_times_s(20, 25), waveform=tone(440, 0.8, 44100))
    for path in ("train/a/1.avi", "train/b/-x [#1];&.mp4", "test/a/näme.mp4", "test/b/4.mkv"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(both, root / path)
    write_clip(root / "test/b/silent.mp4", times_s=even_times_s(20, 25))
    write_clip(root / "test/b/heard.wav", waveform=tone(300, 0.8, 44100), audio_codec="pcm_s16le")
    build_manifest(root / "manifest", root=root, require=("video",), progress=False, jobs=1)
    damaged = write_clip(root / "train/b/damaged.mp4", times_s=even_times_s(200, 25), height=32, width=32)
    content = bytearray(damaged.read_bytes())
    at = content.index(b"mdat") + (len(content) * 2) // 3
    content[at : at + 300] = bytes(300)
    damaged.write_bytes(content)
    return root


@pytest.fixture
def manifest(source, tmp_path) -> Manifest:
    return build_manifest(tmp_path / "manifest", root=source, require=("video",), progress=False, jobs=1)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class _FragilePool(ThreadPoolExecutor):
    """A pool whose workers die of a certain clip."""

    def submit(self, work, *args):
        dies = self._max_workers > 1 or (args and "silent" in args[0].path)
        future = Future()
        future.set_exception(BrokenProcessPool()) if dies else future.set_result(work(*args))
        return future


class TestDatasets:
    def test_the_copy_is_a_dataset_with_the_same_labels_and_splits(self, manifest, tmp_path):
        assert "train/b/damaged.mp4" in set(manifest.clips["path"])
        report = compact.run(manifest, tmp_path / "copy", SETTINGS, jobs=2, progress=False)
        assert report.is_complete
        assert [path for path, _ in report.failures] == ["train/b/damaged.mp4"]
        assert "does not decode after" in report.failures[0][1]
        assert "6 of 7 clips copied" in str(report)
        assert "1 damaged (1 x does not decode" in str(report)
        failures = rows(tmp_path / "copy" / "failures.csv")
        assert [(row["file"], row["label"], row["split"]) for row in failures] == [
            ("train/b/damaged.mp4", "b", "train")
        ]
        about = json.loads((tmp_path / "copy" / "compact.json").read_text())
        assert about["source"]["fingerprint"] == manifest.data_hash
        assert (about["num_copied"], about["num_failed"], about["complete"]) == (6, 1, True)
        again = build_manifest(
            tmp_path / "m2", root=None, csv=tmp_path / "copy" / "clips.csv", require=("video",), progress=False, jobs=1
        )
        assert again.rejected.empty
        assert again.classes == manifest.classes
        assert again.data_hash != manifest.data_hash  # it is different data
        expected = {"train/a/1.mp4.mp4", "train/a/1.avi.mp4", "test/b/4.mp4", "test/b/silent.mp4", "test/a/näme.mp4"}
        assert set(again.clips["path"]) == {*expected, "train/b/-x [#1];&.mp4"}
        labels = {row.path: (row.label, row.split) for row in again.clips.itertuples()}
        assert labels["test/b/4.mp4"] == ("b", "test")

    def test_sound_alone_and_folds(self, source, tmp_path):
        (tmp_path / "list.csv").write_text(f"file,label,split\n{source}/test/b/heard.wav,b,train1+test2\n")
        heard = build_manifest(
            tmp_path / "manifest", root=source, csv=tmp_path / "list.csv", require=("audio",), progress=False, jobs=1
        )
        compact.run(heard, tmp_path / "copy", SETTINGS, jobs=1, progress=False)
        assert rows(tmp_path / "copy" / "clips.csv") == [
            {"file": "test/b/heard.flac", "label": "b", "split": "train1+test2"}
        ]

    def test_what_is_done_is_not_done_again_and_what_changed_is(self, manifest, source, tmp_path):
        target = tmp_path / "copy"
        compact.run(manifest, target, SETTINGS, jobs=1, progress=False)
        before = {path: path.stat().st_ino for path in target.rglob("*.mp4")}
        began = time.process_time()
        compact.run(manifest, target, SETTINGS, jobs=1, progress=False)
        assert {path: path.stat().st_ino for path in target.rglob("*.mp4")} == before
        assert time.process_time() - began < 1
        os.utime(source / "test/b/4.mkv")
        newer = build_manifest(tmp_path / "newer", root=source, require=("video",), progress=False, jobs=1)
        compact.run(newer, target, SETTINGS, jobs=1, progress=False)
        changed = [path.name for path in target.rglob("*.mp4") if path.stat().st_ino != before[path]]
        assert changed == ["4.mp4"]

    def test_shares_make_up_the_whole(self, manifest, tmp_path):
        target = tmp_path / "copy"
        first = compact.run(manifest, target, SETTINGS, jobs=1, share=(1, 2), progress=False)
        assert (first.is_complete, (target / "clips.csv").exists()) == (False, False)
        assert str(first).endswith("3 left")
        assert compact.run(manifest, target, SETTINGS, jobs=1, share=(2, 2), progress=False).is_complete
        whole = tmp_path / "whole"
        compact.run(manifest, whole, SETTINGS, jobs=1, progress=False)
        assert files(target) == files(whole)

    def test_two_at_once_after_a_kill(self, manifest, tmp_path):
        target = tmp_path / "copy"
        code = (
            "import sys; from crisscross.data.prepare import compact\n"
            "from crisscross.data.manifest import read_manifest\n"
            "from crisscross.data.prepare.compact_encode import CompactSettings\n"
            "if __name__ == '__main__':\n"
            "    done = compact.run(read_manifest(sys.argv[1]), sys.argv[2], CompactSettings(32, crf=18), jobs=1,"
            " progress=False)\n"
            "    assert done.is_complete\n"
        )
        command = [sys.executable, "-c", code, str(manifest.directory), str(target)]
        kill_when(command, lambda: bool(list(target.rglob("*/*/*.mp4"))))
        there = len(list(target.rglob("*/*/*.mp4")))
        run_at_once(command, num=2)
        assert there >= 1
        whole = tmp_path / "whole"
        compact.run(manifest, whole, SETTINGS, jobs=1, progress=False)
        assert files(target) == files(whole)

    def test_a_clip_that_kills_its_worker_is_found_and_left_out(self, manifest, tmp_path, monkeypatch):
        monkeypatch.setattr(parallel, "_worker_pool", _FragilePool)
        report = compact.run(manifest, tmp_path / "copy", SETTINGS, jobs=2, progress=False)
        assert report.is_complete
        assert dict(report.failures)["test/b/silent.mp4"] == "crashes the decoder"
        assert report.num_copied == 5

    def test_bad_requests_are_one_line(self, manifest, source, tmp_path):
        with pytest.raises(ValueError, match=r"jobs=0: at least 1 process is needed"):
            compact.run(manifest, tmp_path / "copy", SETTINGS, jobs=0)
        with pytest.raises(ValueError, match=r"share=3/2: give k/n with k from 1 to n"):
            compact.run(manifest, tmp_path / "copy", SETTINGS, share=(3, 2))
        with pytest.raises(ValueError, match=r"cannot be made in .*, which holds the original clips"):
            compact.run(manifest, source, SETTINGS, progress=False)
        with pytest.raises(ValueError, match=r"has 'manifest' but no compact.json: not a compact copy"):
            compact.run(manifest, tmp_path, SETTINGS, progress=False)
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"cannot write the compact copy to .*/file .*free space or choose another"):
            compact.run(manifest, tmp_path / "file", SETTINGS, progress=False)
        compact.run(manifest, tmp_path / "copy", SETTINGS, jobs=1, progress=False)
        with pytest.raises(
            ValueError, match=r"holds a compact copy made with short_side_px=32, now 64: choose an empty"
        ):
            compact.run(manifest, tmp_path / "copy", CompactSettings(64, crf=18), progress=False)

    def test_a_full_disk_stops_it_in_one_line_and_more_space_lets_it_go_on(self, manifest, tmp_path, small_disk):
        disk = small_disk("300k")
        (disk / "ballast").write_bytes(bytes(270_000))
        with pytest.raises(
            OSError, match=r"cannot write the compact copy to .* \(No space left on device\): free space"
        ):
            compact.run(manifest, disk / "copy", SETTINGS, jobs=1, progress=False)
        (disk / "ballast").unlink()
        assert compact.run(manifest, disk / "copy", SETTINGS, jobs=1, progress=False).is_complete


@pytest.mark.parametrize("name", ["ucf101", "esc50"])
def test_the_copy_of_an_official_dataset_keeps_its_folds(name, tmp_path, capsys):
    root = make_miniature(name, tmp_path / name)
    asked = [name, "--root", str(root), "--manifest-root", str(tmp_path / "m"), "--jobs", "1"]
    assert prepare_main([*asked, "--compact", str(tmp_path / "copy"), "--short-side", "32"]) == 0
    use = next(line for line in capsys.readouterr().out.splitlines() if "to use it: " in line).split("to use it: ")[1]
    chosen = {}
    for key, overrides in (("original", data_overrides(name, root)), ("copy", use.split())):
        overrides = [*overrides, f"data.manifest_root={tmp_path / 'm'}"]
        with initialize_config_module("experiments.conf", version_base="1.3"):
            config = OmegaConf.to_container(compose("downstream", overrides=overrides), resolve=True)
        settings = parse(DataSettings, prepare(config["data"], progress=False))
        manifest = open_manifest(settings)
        chosen[key] = settings, manifest, {split: manifest.split(split)["label"].tolist() for split in settings.splits}
    (before, original, labels), (after, copy, labels_of_copy) = chosen.values()
    assert (after.name, after.folds, after.require) == (before.name, before.folds, before.require)
    assert labels_of_copy == labels
    assert len(labels) == 2 * len(before.folds)
    assert copy.data_hash != original.data_hash
