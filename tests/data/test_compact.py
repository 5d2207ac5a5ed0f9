"""Compact copies: same times, same sound, nothing lost silently, resumed after kills, shared by several at once."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.data import compact
from crisscross.data.catalogue import open_manifest, prepare
from crisscross.data.compact_clip import Streams, copy_size, ticks_of, write_copy
from crisscross.data.compact_settings import CompactSettings
from crisscross.data.decode import decode_windows
from crisscross.data.manifest import Manifest, build_manifest, read_manifest
from crisscross.data.pictures import pictures
from crisscross.data.prepare import main as prepare_main
from crisscross.data.probe import probe
from crisscross.data.settings import DataSettings
from crisscross.data.streams import DecodeError, choose_stream, open_media
from crisscross.settings_base import parse
from tests.data.clips import even_times_s, impulses, read_numbers, tone, write_clip
from tests.data.miniatures import data_overrides, make_miniature
from tests.requirements import REAL_DATA, needs_real_data

SETTINGS = CompactSettings(short_side_px=32, crf=18)


def streams_of(path: Path) -> Streams:
    found = probe(path)
    times = (found.video_start_s, found.video_end_s, found.audio_start_s, found.audio_end_s)
    return Streams(*(math.nan if time_s is None else time_s for time_s in times))


def picture_times_s(path: Path) -> list[float]:
    with open_media(path) as container:
        return [picture.time_s for picture in pictures(container, choose_stream(container, path, "video"))]


def sound(path: Path, start_s: float, seconds: float) -> np.ndarray:
    nothing = {"video_starts_s": [], "num_frames": 1, "frame_rate_hz": 1, "canvas": None}
    found = decode_windows(path, **nothing, audio_starts_s=[start_s], audio_seconds=seconds, sample_rate_hz=16000)
    return found[1][0]


def frames(path: Path, starts_s: list[float], canvas: tuple[int, int] | None) -> np.ndarray:
    wanted = {"num_frames": 8, "frame_rate_hz": 16, "canvas": canvas}
    nothing = {"audio_starts_s": [], "audio_seconds": 0, "sample_rate_hz": 16000}
    return decode_windows(path, video_starts_s=starts_s, **wanted, **nothing)[0]


def peak_ratio_db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def copied(source: Path, settings: CompactSettings = SETTINGS) -> Path:
    copy = source.with_name(f"copy of {source.stem}.mp4")
    write_copy(source, copy, streams_of(source), settings)
    return copy


class TestOneClip:
    @pytest.mark.parametrize(
        ("suffix", "video_start_s", "audio_start_s"),
        [(".mp4", 0, 0), (".mp4", 2.04, 0), (".mp4", 0, 1.98), (".mkv", 0.5, 0.25), (".ts", 0.1, 0.3)],
    )
    def test_picture_and_sound_stay_where_they_were(self, tmp_path, suffix, video_start_s, audio_start_s):
        beep_s = audio_start_s + 0.7
        source = write_clip(
            tmp_path / f"a{suffix}",
            times_s=even_times_s(30, 25, start_s=video_start_s),
            sound=impulses([0.7], 1.2, 44100) + tone(300, 1.2, 44100, level=0.05),
            audio_start_s=audio_start_s,
            audio_codec="flac" if suffix == ".mkv" else "aac",
        )
        copy = copied(source)
        np.testing.assert_allclose(picture_times_s(copy), picture_times_s(source), atol=1e-6)
        before, after = streams_of(source), streams_of(copy)
        for name in ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-3), name
        one, other = (sound(path, before.audio_start_s, 1.1) for path in (source, copy))
        np.testing.assert_allclose(other, one, atol=2**-15)  # to the last of 16 bits
        if suffix != ".ts":
            loudest = np.abs(sound(copy, beep_s - 0.1, 0.2)).argmax()
            assert loudest / 16000 == pytest.approx(0.1, abs=1e-3)
        starts_s = [before.video_start_s, before.video_start_s + 0.53]
        assert (read_numbers(frames(copy, starts_s, None)) == read_numbers(frames(source, starts_s, None))).all()

    def test_pictures_look_as_training_would_have_seen_them(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(30, 25), height=96, width=160)
        copy = copied(source, CompactSettings(short_side_px=48, crf=12))
        one, other = frames(source, [0.1], (48, 80)), frames(copy, [0.1], None)
        assert one.shape == other.shape
        assert peak_ratio_db(one, other) > 32

    def test_colours_keep_their_values(self, tmp_path):
        source = tmp_path / "a.mkv"
        with av.open(str(source), "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
            for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 10, 10)):
                picture = np.broadcast_to(np.uint8(colour), (48, 64, 3))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(stream.encode())
        copy = copied(source, CompactSettings(short_side_px=48, crf=10))
        one, other = (frames(path, [0.0], None).astype(int).mean(axis=(2, 3)) for path in (source, copy))
        assert np.abs(one - other).max() < 6

    def test_key_frames_come_as_asked_and_nothing_waits_for_a_later_picture(self, tmp_path):
        copy = copied(write_clip(tmp_path / "a.mp4", times_s=even_times_s(50, 25), video_options={"bf": "3"}))
        with av.open(str(copy)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36, 48]
        assert all(packet.pts == packet.dts for packet in packets)

    def test_turned_and_stretched_as_shown(self, tmp_path):
        turned = write_clip(tmp_path / "a.mp4", times_s=even_times_s(5, 25), height=48, width=80, rotation=90)
        wide = write_clip(tmp_path / "b.mp4", times_s=even_times_s(5, 25), pixel_aspect=Fraction(2, 1))
        for source, size in ((turned, (54, 32)), (wide, (32, 106))):
            copy = copied(source)
            found = probe(copy)
            assert (found.height, found.width) == size
            assert peak_ratio_db(frames(source, [0], size), frames(copy, [0], None)) > 25

    def test_a_clip_that_starts_before_zero_is_moved_as_a_whole(self, tmp_path):
        source = write_clip(tmp_path / "a.mkv", times_s=even_times_s(25, 25), sound=impulses([0.5], 1, 48000),
                            sample_rate_hz=48000, audio_codec="flac")  # fmt: skip
        before = streams_of(source)
        early = Streams(before.video_start_s, before.video_end_s, -0.0311, before.audio_end_s)
        copy = tmp_path / "copy.mp4"
        write_copy(source, copy, early, SETTINGS)
        shift_s = early.shift_s(16000)
        assert 0.0311 <= shift_s < 0.0312
        np.testing.assert_allclose(np.subtract(picture_times_s(copy), picture_times_s(source)), shift_s, atol=1e-5)
        assert np.abs(sound(copy, 0.0, 0.9)).argmax() == round((0.5 + shift_s) * 16000)

    def test_no_sound_stays_no_sound_and_no_picture_becomes_flac(self, tmp_path):
        silent = copied(write_clip(tmp_path / "a.mp4", times_s=even_times_s(9, 25)))
        assert probe(silent).audio_problem == "no audio stream"
        heard = write_clip(tmp_path / "b.wav", sound=tone(440, 1, 44100), audio_codec="pcm_s16le")
        copy = tmp_path / "b.flac"
        write_copy(heard, copy, streams_of(heard), SETTINGS)
        with av.open(str(copy)) as container:
            assert container.format.name == "flac"
            assert container.streams.audio[0].rate == 16000
        np.testing.assert_allclose(sound(copy, 0, 1), sound(heard, 0, 1), atol=2**-15)

    def test_the_same_clip_gives_the_same_bytes(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(25, 25), sound=tone(440, 1, 44100))
        assert copied(source).read_bytes() == copied(source).read_bytes()

    def test_a_damaged_clip_is_an_error_that_says_where(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(50, 25), sound=tone(440, 2, 44100))
        content = bytearray(source.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        streams = streams_of(source)
        source.write_bytes(content)
        with pytest.raises(DecodeError, match=r"a\.mp4: .*does not decode"):
            write_copy(source, tmp_path / "copy.mp4", streams, SETTINGS)

    def test_sizes(self):
        assert copy_size(256, 340, 128) == (128, 170)
        assert copy_size(340, 256, 128) == (170, 128)
        assert copy_size(241, 321, 256) == (240, 320)  # never larger, even
        assert copy_size(1, 1, 128) == (2, 2)

    def test_clocks(self):
        assert ticks_of(Fraction(1, 12800)) == 102400
        assert ticks_of(Fraction(1001, 30000)) == 90000
        assert ticks_of(Fraction(1, 10**9)) == 90000
        assert ticks_of(None) == 90000


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"short_side_px": 127}, "got short_side_px=127; allowed: even, 16 to 2160"),
        ({"key_frame_every": 0}, "got key_frame_every=0; allowed: 1 to 600"),
        ({"crf": 60}, "got crf=60; allowed: 0 to 51"),
        ({"preset": "hasty"}, "got preset=hasty; allowed: ultrafast"),
        ({"sample_rate_hz": 1}, "got sample_rate_hz=1; allowed: 8000 to 48000"),
    ],
)
def test_impossible_settings(setting, text):
    with pytest.raises(ValueError, match=text):
        CompactSettings(**setting)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Clips of every kind; one of them is damaged where building the manifest does not look."""
    root = tmp_path_factory.mktemp("source")
    both = write_clip(root / "train/a/1.mp4", times_s=even_times_s(20, 25), sound=tone(440, 0.8, 44100))
    for path in ("train/a/1.avi", "train/b/-x [#1];&.mp4", "test/a/näme.mp4", "test/b/4.mkv"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(both, root / path)
    write_clip(root / "test/b/silent.mp4", times_s=even_times_s(20, 25))
    write_clip(root / "test/b/heard.wav", sound=tone(300, 0.8, 44100), audio_codec="pcm_s16le")
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
    """Stands for processes, one of which dies of a certain clip."""

    def submit(self, work, tasks):
        dies = self._max_workers > 1 or "silent" in tasks[3].path
        future = Future()
        future.set_exception(BrokenProcessPool()) if dies else future.set_result(work(tasks))
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
        assert about["source"]["fingerprint"] == manifest.fingerprint
        assert (about["num_copied"], about["num_failed"], about["complete"]) == (6, 1, True)
        again = build_manifest(
            tmp_path / "m2", root=None, csv=tmp_path / "copy" / "clips.csv", require=("video",), progress=False, jobs=1
        )
        assert again.rejected.empty
        assert again.classes == manifest.classes
        assert again.fingerprint != manifest.fingerprint  # it is other data
        expected = {"train/a/1.mp4.mp4", "train/a/1.avi.mp4", "test/b/4.mp4", "test/b/silent.mp4", "test/a/näme.mp4"}
        assert set(again.clips["path"]) == {*expected, "train/b/-x [#1];&.mp4"}
        told = {row.path: (row.label, row.split) for row in again.clips.itertuples()}
        assert told["test/b/4.mp4"] == ("b", "test")

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
            "import sys; from crisscross.data import compact; from crisscross.data.manifest import read_manifest\n"
            "from crisscross.data.compact_settings import CompactSettings\n"
            "if __name__ == '__main__':\n"
            "    done = compact.run(read_manifest(sys.argv[1]), sys.argv[2], CompactSettings(32, crf=18), jobs=1,"
            " progress=False)\n"
            "    assert done.is_complete\n"
        )
        command = [sys.executable, "-c", code, str(manifest.directory), str(target)]
        struck = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(target.rglob("*/*/*.mp4")):
            time.sleep(0.002)
        struck.send_signal(signal.SIGKILL)
        struck.wait()
        there = len(list(target.rglob("*/*/*.mp4")))
        both = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(timeout=120) for process in both] == [0, 0]
        assert there >= 1
        whole = tmp_path / "whole"
        compact.run(manifest, whole, SETTINGS, jobs=1, progress=False)
        assert files(target) == files(whole)

    def test_a_clip_that_kills_whoever_opens_it_is_found_and_left_out(self, manifest, tmp_path, monkeypatch):
        monkeypatch.setattr(compact, "worker_pool", _FragilePool)
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


@pytest.mark.slow
class TestRealClips:
    pytestmark = needs_real_data

    def test_some_clips(self, tmp_path):
        folder = Path(REAL_DATA) / "video" / "clips"
        for source in sorted(folder.glob("*.mp4"))[::12]:
            copy = tmp_path / source.name
            write_copy(source, copy, streams_of(source), CompactSettings())
            np.testing.assert_allclose(picture_times_s(copy), picture_times_s(source), atol=1e-6)
            found = probe(copy)
            canvas = (found.height, found.width)
            assert peak_ratio_db(frames(source, [1.0], canvas), frames(copy, [1.0], None)) > 30
            one, other = sound(source, 0.5, 2), sound(copy, 0.5, 2)
            assert np.corrcoef(one, other)[0, 1] > 0.9999
            assert np.abs(np.clip(one, -1, 1) - other).max() <= 2**-15

    def test_odd_files(self, tmp_path):
        folder = Path(REAL_DATA) / "video" / "torture"
        options = {"root": folder, "csv": folder / "torture.csv", "label_column": "source", "progress": False}
        for stream in ("video", "audio"):
            manifest = build_manifest(tmp_path / stream, require=(stream,), jobs=1, **options)
            report = compact.run(manifest, tmp_path / f"copy-{stream}", CompactSettings(64), jobs=1, progress=False)
            assert report.is_complete
            expected = {"video": ["bit_rot.mp4"], "audio": []}[stream]
            assert [path for path, _ in report.failures] == expected
            copies = read_copy(tmp_path / f"copy-{stream}", stream)
            assert len(copies.clips) == report.num_copied
            left = manifest.clips[~manifest.clips["path"].isin(expected)]
            for name in ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s"):
                has_video = left["video_start_s"].notna().to_numpy()
                apart = np.abs(left[name].to_numpy() - copies.clips[name].to_numpy())[has_video]
                assert np.nanmax(apart, initial=0) < 1e-3, name


def read_copy(target: Path, stream: str) -> Manifest:
    directory = target.with_name(f"{target.name}-manifest")
    build_manifest(directory, root=None, csv=target / "clips.csv", require=(stream,), jobs=1, progress=False)
    return read_manifest(directory)


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
    assert copy.fingerprint != original.fingerprint
