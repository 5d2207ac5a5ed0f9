"""The synthetic clips: real files, reproducible, complete after any kill, and no shortcut to the class."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from crisscross.data.synthetic import render, scenes, spec
from crisscross.data.synthetic.generate import generate
from crisscross.data.synthetic.render import render_clip
from crisscross.data.synthetic.spec import CLASSES, SPLITS, SyntheticClip, SyntheticSettings, list_clips
from crisscross.utils.rng import derive_key

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = SyntheticSettings(num_classes=3, train_clips_per_class=2, test_clips_per_class=1, seconds=1.5, frame_size_px=32)
MANY = SyntheticSettings(num_classes=3, train_clips_per_class=20, test_clips_per_class=5, seconds=1.5, frame_size_px=32)


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.stack(frames), np.concatenate(sound)


def assert_whole(root: Path, settings: SyntheticSettings) -> None:
    found = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert found == sorted([Path("toy.json"), *(clip.path for clip in list_clips(settings))])
    for clip in list_clips(settings):
        frames, sound = decode(root / clip.path)
        assert len(frames) == round(settings.seconds * settings.frame_rate_hz)
        assert len(sound) >= settings.seconds * 16_000


def start(root: Path, settings: SyntheticSettings, *, jobs: int = 2, before: str = "") -> subprocess.Popen:
    """Run ``generate`` in a separate process and process group."""
    code = f"""
from crisscross.data.synthetic.generate import SyntheticSettings, generate
if __name__ == "__main__":
    {before or "pass"}
    generate({str(root)!r}, {settings!r}, jobs={jobs}, progress=False)
"""
    script = root.parent / f"generate_{time.monotonic_ns()}.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_clips(root: Path, num: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while len(list(root.rglob("*.mp4"))) < num:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no clips appeared"
        time.sleep(0.01)


def assert_group_gone(group: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("worker processes outlived their parent")


def test_files_are_real_clips_and_hold_what_was_drawn(tmp_path):
    settings = SyntheticSettings(num_classes=2, train_clips_per_class=1, test_clips_per_class=1)
    generate(tmp_path, settings, jobs=1, progress=False)
    clip = SyntheticClip("train", 1, 0)
    path = tmp_path / clip.path
    assert path == tmp_path / "train" / "slide" / "slide_train_0000.mp4"
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (40, 40, 16)
        assert (audio.rate, audio.layout.name) == (16_000, "mono")
        assert float(video.duration * video.time_base) == pytest.approx(5.0)
        assert float(audio.duration * audio.time_base) == pytest.approx(5.0, abs=0.01)
        assert video.start_time == 0
        assert audio.start_time == 0
        packets = [packet for packet in container.demux(video) if packet.pts is not None]
        keyframes = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        assert keyframes[0] == 0
        assert np.diff([*keyframes, len(packets)]).max() <= 8  # the encoder may add some where much changes
    frames, sound = decode(path)
    drawn_frames, drawn_sound = render_clip(clip, settings)
    assert np.abs(frames.astype(int) - drawn_frames).mean() < 8
    num = len(drawn_sound)
    lags = np.arange(-800, 801)  # picture and sound stay together: no encoder delay left in the file
    inner = drawn_sound[1000 : num - 1000]
    scores = [inner @ sound[1000 + lag : num - 1000 + lag] for lag in lags]
    assert abs(lags[int(np.argmax(scores))]) <= 16


def test_picture_and_sound_keep_the_same_clock():
    settings = SyntheticSettings(frame_rate_hz=50, seconds=3.0)
    clip = SyntheticClip("train", CLASSES.index("bounce"), 0)
    _, sound = render_clip(clip, settings)
    clock = scenes.draw_clock(render._random(clip, settings.seed, "clock"))
    first = int(np.ceil(clock.phase))
    contacts_s = (np.arange(first, first + 5) - clock.phase) / clock.tempo_hz
    loud_s = np.flatnonzero(np.abs(sound) > 0.25 * np.abs(sound).max()) / 16_000
    onsets_s = loud_s[np.diff(loud_s, prepend=-1.0) > 0.1]
    for contact_s in contacts_s:
        assert np.abs(onsets_s - contact_s).min() < 0.02
    times_s = np.arange(0, 3, 0.02)
    pose = scenes._still_pose(times_s, np.zeros(2), np.random.default_rng(0))
    steps = scenes._Steps(clock.beats(times_s), 0.2, 1.0, 0.0, np.random.default_rng(0))
    scenes._bounce(pose, steps)
    lowest = pose.y > np.quantile(pose.y, 0.95)
    distance = np.abs(clock.beats(times_s) - np.round(clock.beats(times_s)))
    assert distance[lowest].max() < 0.1


def test_a_clip_depends_on_its_name_and_the_settings_alone():
    clip = SyntheticClip("test", 4, 3)
    frames, sound = render_clip(clip, TINY)
    frames_again, sound_again = render_clip(clip, TINY)
    np.testing.assert_array_equal(frames, frames_again)
    np.testing.assert_array_equal(sound, sound_again)
    more_classes = SyntheticSettings(seconds=1.5, frame_size_px=32)
    np.testing.assert_array_equal(frames, render_clip(clip, more_classes)[0])
    other_seed = SyntheticSettings(seconds=1.5, frame_size_px=32, seed=1)
    assert (frames != render_clip(clip, other_seed)[0]).mean() > 0.5
    assert frames.dtype == np.uint8
    assert frames.shape == (24, 32, 32, 3)
    assert sound.dtype == np.float32
    assert sound.shape == (24_000,)
    assert np.abs(sound).max() <= 1


@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_moves_and_sounds_at_odd_sizes_and_lengths(kind):
    clip = SyntheticClip("train", CLASSES.index(kind), 0)
    frames, sound = render_clip(clip, SyntheticSettings(seconds=1.3, frame_size_px=34, frame_rate_hz=25))
    assert len(frames) == 32
    assert (np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3)) > 0).any()
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() > 0.05


def test_no_two_clips_share_a_nuisance_seed(monkeypatch):
    keys = []

    def record(seed, purpose, *counters):
        keys.append(derive_key(seed, purpose, *counters))
        return np.random.default_rng(0)

    monkeypatch.setattr(render, "generator", record)
    clips = list_clips(SyntheticSettings())
    for clip in clips:
        for purpose in ("clock", "picture", "sound"):
            render._random(clip, 0, purpose)
    assert len(clips) == 10 * (32 + 16)
    assert len(set(keys)) == len(keys) == 3 * len(clips)


def test_making_again_keeps_what_is_there_and_makes_what_is_missing(tmp_path):
    generate(tmp_path, TINY, jobs=1, progress=False)
    assert_whole(tmp_path, TINY)
    assert json.loads((tmp_path / "toy.json").read_text())["fingerprint"] == TINY.fingerprint()
    paths = [tmp_path / clip.path for clip in list_clips(TINY)]
    paths[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in paths[1:]}
    generate(tmp_path, TINY, jobs=1, progress=False)
    assert_whole(tmp_path, TINY)
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == before


def test_leftovers_of_killed_processes_go_when_old(tmp_path):
    fresh, old = tmp_path / ".making-fresh", tmp_path / ".making-old"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    generate(tmp_path, TINY, jobs=1, progress=False)
    assert [path.name for path in tmp_path.glob(".making-*")] == [".making-fresh"]


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(tmp_path):
    root = tmp_path / "clips"
    processes = [start(root, MANY, jobs=1) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    assert_whole(root, MANY)


@pytest.mark.slow
def test_killed_midway_then_resumed(tmp_path):
    root = tmp_path / "clips"
    process = start(root, MANY)
    wait_for_clips(root, 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert_group_gone(process.pid)
    there = list(root.rglob("*.mp4"))
    assert 5 <= len(there) < len(list_clips(MANY))
    for path in there:
        assert len(decode(path)[0]) == 24
    generate(root, MANY, jobs=2, progress=False)
    for leftover in root.glob(".making-*"):  # too fresh to be known as abandoned
        for path in leftover.iterdir():
            path.unlink()
    assert_whole(root, MANY)


@pytest.mark.slow
def test_ctrl_c_leaves_whole_clips_only(tmp_path):
    root = tmp_path / "clips"
    more_than_can_be = replace(MANY, train_clips_per_class=200)  # made before we look, however slow this machine is
    process = start(root, more_than_can_be)
    wait_for_clips(root, 5, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in stderr
    assert_group_gone(process.pid)
    assert not list(root.glob(".making-*"))
    assert len(list(root.rglob("*.mp4"))) < len(list_clips(more_than_can_be))
    for path in root.rglob("*.mp4"):
        assert len(decode(path)[0]) == 24


def test_a_folder_of_other_settings_or_other_things_is_refused(tmp_path):
    generate(tmp_path / "clips", TINY, jobs=1, progress=False)
    with pytest.raises(ValueError, match=r"toy clips of other settings: fingerprint .*; choose an empty folder"):
        generate(tmp_path / "clips", MANY, jobs=1, progress=False)
    (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'train' but no toy.json: not toy clips; choose an empty folder"):
        generate(tmp_path / "mine", TINY, jobs=1, progress=False)
    (tmp_path / "mine" / "toy.json").write_text("[]")
    with pytest.raises(ValueError, match="not readable as the mark of toy clips; choose"):
        generate(tmp_path / "mine", TINY, jobs=1, progress=False)


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"cannot write the toy clips to .*: Not a directory; free") as caught:
        generate(tmp_path / "file" / "clips", TINY, progress=False)
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_gives_one_line_and_no_torn_clip(tmp_path):
    # A limit on file size stops the write in the middle, as a full disk does.
    root = tmp_path / "clips"
    process = start(
        root, TINY, jobs=1, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    )
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1
    assert f"cannot write the toy clips to {root}: File too large; free space, or choose" in stderr.splitlines()[-1]
    assert not list(root.rglob("*.mp4"))


def test_impossible_settings_name_key_value_and_remedy():
    with pytest.raises(ValueError, match="got num_classes=11; allowed: 2 to 10"):
        SyntheticSettings(num_classes=11)
    with pytest.raises(ValueError, match="got frame_size_px=33; allowed: even, 32 to 512"):
        SyntheticSettings(frame_size_px=33)
    with pytest.raises(ValueError, match="jobs=0: at least 1 process is needed"):
        generate("unused", TINY, jobs=0)


def test_fingerprint_follows_every_setting_and_the_version(monkeypatch):
    changes = [
        {"num_classes": 9},
        {"train_clips_per_class": 9},
        {"test_clips_per_class": 9},
        {"val_clips_per_class": 9},
        {"seconds": 4.0},
        {"frame_size_px": 64},
        {"frame_rate_hz": 20},
        {"seed": 1},
    ]
    prints = {SyntheticSettings().fingerprint(), *(SyntheticSettings(**change).fingerprint() for change in changes)}
    assert len(prints) == 1 + len(changes)
    monkeypatch.setattr(spec, "SYNTHETIC_VERSION", -1)
    assert SyntheticSettings().fingerprint() not in prints


def test_a_validation_split_changes_no_other_clip():
    """Clips made before there was a validation split keep their folder's hash and their names."""
    assert SyntheticSettings().fingerprint() == "0cdb1a634570dc3d"
    with_val = list_clips(replace(TINY, val_clips_per_class=2))
    assert [clip for clip in with_val if clip.split != "val"] == list_clips(TINY)
    assert [clip.split for clip in with_val].count("val") == 2 * TINY.num_classes


@pytest.mark.slow
def test_neither_one_frame_nor_the_mean_spectrum_gives_the_class():
    """Ten classes, chance 10 %. Motion and rhythm give the class; a still frame and an average do not."""
    settings = SyntheticSettings(
        train_clips_per_class=24, test_clips_per_class=12, seconds=2.5, frame_size_px=40, seed=7
    )
    clips = list_clips(settings)
    rendered = [render_clip(clip, settings) for clip in clips]
    frames = np.stack([frames for frames, _ in rendered])
    spectrum = np.stack([spectrogram(sound) for _, sound in rendered])
    labels = np.array([clip.class_index for clip in clips])
    train = np.array([clip.split == SPLITS[0] for clip in clips])

    def linear(features):
        return linear_svm_accuracy(features[train], labels[train], features[~train], labels[~train])

    def forest(features):
        from sklearn.ensemble import ExtraTreesClassifier

        model = ExtraTreesClassifier(300, random_state=0).fit(features[train], labels[train])
        return model.score(features[~train], labels[~train])

    still = linear(frames[:, 20].reshape(len(frames), 20, 2, 20, 2, 3).mean(axis=(2, 4)).reshape(len(frames), -1))
    average = linear(spectrum.mean(axis=2))
    motion = forest(motion_features(frames[:, 12:28]))
    rhythm = forest(rhythm_features(spectrum))
    print(f"still {still:.2f} average spectrum {average:.2f} motion {motion:.2f} rhythm {rhythm:.2f}")
    assert still < 0.25
    assert average < 0.35
    assert motion > 0.6
    assert rhythm > 0.5


def linear_svm_accuracy(train_x, train_y, test_x, test_y) -> float:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    model = make_pipeline(StandardScaler(), LinearSVC(max_iter=2000))
    search = GridSearchCV(model, {"linearsvc__C": [1e-5, 1e-4, 1e-3, 1e-2]}, cv=3)
    return search.fit(train_x, train_y).score(test_x, test_y)


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Log power in 60 bands that widen with pitch, (60, time), hop 10 ms."""
    starts = np.arange(0, 2 * 16_000 - 512, 160)
    windows = sound[starts[:, None] + np.arange(512)] * np.hanning(512)
    power = np.abs(np.fft.rfft(windows, 1024)) ** 2
    edges = np.unique(np.geomspace(8, 512, 61).astype(int))
    return np.log(np.add.reduceat(power, edges[:-1], axis=1).T + 1e-6)


def rhythm_features(spectrum: np.ndarray) -> np.ndarray:
    """How loudness and the loudest pitch go over time, whatever the pitch and the loudness."""
    loudest = spectrum.max(axis=1)
    level = loudest - loudest.max(axis=1, keepdims=True)
    pitch = (np.exp(spectrum) * np.arange(spectrum.shape[1])[:, None]).sum(1) / np.exp(spectrum).sum(1)
    beat = np.abs(np.fft.rfft(level - level.mean(axis=1, keepdims=True), axis=1))[:, 1:40]
    columns = [np.sort(level, axis=1)[:, ::10], np.sort(pitch - np.median(pitch, axis=1, keepdims=True), 1)[:, ::10]]
    columns += [np.sort(np.diff(values, axis=1), axis=1)[:, ::10] for values in (level, pitch)]
    return np.concatenate([*columns, beat], axis=1)


def motion_features(frames: np.ndarray) -> np.ndarray:
    """Mean flow along x and y, change of brightness, and likeness of frames some way apart, over 16 frames."""
    gray = frames.astype(np.float32).mean(axis=-1)
    change, middle = np.diff(gray, axis=1), (gray[:, 1:] + gray[:, :-1]) / 2
    along_y, along_x = np.gradient(middle, axis=(2, 3))
    texture = (along_x**2 + along_y**2).mean(axis=(2, 3)) + 1e-3
    flows = [(change * along).mean(axis=(2, 3)) / texture for along in (along_x, along_y)]
    energy = np.abs(change).mean(axis=(2, 3))
    typical = energy.mean(axis=1, keepdims=True) + 0.05
    lags = [np.abs(gray[:, k:] - gray[:, :-k]).mean(axis=(1, 2, 3))[:, None] / typical for k in range(2, 11)]
    columns = list(lags)
    for series in (*flows, change.mean(axis=(2, 3)) / typical, energy / typical):
        columns += [np.sort(series, axis=1), np.abs(np.diff(series, axis=1)).mean(axis=1, keepdims=True)]
    columns += [np.sign(flow[:, 1:] * flow[:, :-1]).mean(axis=1, keepdims=True) for flow in flows]
    columns.append(np.abs(flows[0]).mean(axis=1, keepdims=True) / (np.abs(flows[1]).mean(axis=1, keepdims=True) + 1e-4))
    return np.concatenate(columns, axis=1)


@pytest.mark.slow
def test_the_same_clip_is_the_same_file_whatever_lies_in_memory() -> None:
    settings = SyntheticSettings(seconds=2.5, frame_size_px=40)
    frames, wave = render_clip(list_clips(settings)[0], settings)
    rng = np.random.default_rng(0)
    files = set()
    for _ in range(250):
        litter = [rng.integers(0, 255, rng.integers(100, 400_000)).astype(np.uint8) for _ in range(8)]
        kept = litter[::2]
        del litter
        files.add(render.encode_mp4(frames.copy(), wave, frame_rate_hz=settings.frame_rate_hz))
        del kept
    assert len(files) == 1
