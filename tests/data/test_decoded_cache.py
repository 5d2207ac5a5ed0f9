"""Clips from the cache are the same bits as decoded ones, whatever happens to the cache."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.data import decoded_cache
from crisscross.data.catalog import open_manifest
from crisscross.data.decoded_cache import DecodedCache, decoded_bytes, open_cache
from crisscross.data.loader import Clips, ViewDataset
from crisscross.data.manifest import Manifest
from crisscross.data.media.decode import DecodeError, decode_windows
from crisscross.data.media.whole import MAX_SECONDS, NotWholeError, decode_whole_audio, decode_whole_video
from crisscross.pretrain import pretrain
from crisscross.run.identity import identity
from crisscross.run.run_dir import RunDirectory
from tests.data.clips import even_times_s, tone, write_clip
from tests.requirements import REAL_DATA, needs_real_data
from tests.support import history, tiny_config

CANVAS = (36, 60)

CLIPS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b_frames.mp4": {"video_options": {"bf": "3"}, "key_frame_every": 24},
    "old.avi": {"video_codec": "mpeg4", "audio_codec": "mp3"},
    "late_audio.mp4": {"audio_start_s": 0.7},
    "late_video.mkv": {"times_s": even_times_s(60, 25, start_s=1.3)},
    "uneven.mkv": {"times_s": np.cumsum(np.random.default_rng(0).uniform(0.01, 0.12, 60)), "audio_codec": "libopus"},
    "native_rate.mp4": {"sample_rate_hz": 16000},
    "odd_rate.mkv": {"sample_rate_hz": 22050, "audio_codec": "flac"},
    "rotated.mp4": {"rotation": 90},
    "wide_pixels.mp4": {"width": 64},
}


def _clip(folder: Path, name: str) -> Path:
    options = dict(CLIPS[name])
    rate_hz = options.get("sample_rate_hz", 48000 if options.get("audio_codec") == "libopus" else 44100)
    wave = tone(440, 2.9, rate_hz) + np.random.default_rng(1).normal(0, 0.1, (1, round(2.9 * rate_hz))).astype("f4")
    given = {"times_s": even_times_s(70, 25), "waveform": wave, "sample_rate_hz": rate_hz}
    return write_clip(folder / name, **{**given, **options})


def check_windows(path: Path, seconds: float) -> None:
    """Compare windows at random places, some of them outside the clip."""
    wanted = {"num_frames": 8, "frame_rate_hz": 16}
    draw = random.Random(path.name)
    starts = [[draw.uniform(-1, seconds + 1) for _ in range(draw.randint(1, 3))] for _ in range(12)]
    starts += [[0.0, 0.0, k / 25, seconds - 0.5] for k in range(4)]
    video, audio = decode_whole_video(path, CANVAS), decode_whole_audio(path, 16000)
    for begins in starts:
        frames, waves = decode_windows(
            path,
            **wanted,
            video_starts_s=begins,
            canvas=CANVAS,
            audio_starts_s=begins,
            audio_seconds=0.5,
            sample_rate_hz=16000,
        )
        assert np.array_equal(frames, video.windows(begins, **wanted))
        assert np.array_equal(waves, audio.windows(begins, num_samples=8000, sample_rate_hz=16000))


@pytest.mark.parametrize("name", CLIPS)
def test_windows_of_the_whole_are_those_of_the_decoder(tmp_path: Path, name: str) -> None:
    clip = _clip(tmp_path, name)
    try:
        check_windows(clip, 3.0)
    except NotWholeError:
        assert name.endswith(".avi")  # times that a seek changes


@pytest.mark.slow
@pytest.mark.parametrize("needs", [pytest.param(None, marks=needs_real_data)])
def test_windows_of_real_clips_are_those_of_the_decoder(needs: None) -> None:
    """Files that are not for the cache are left to the decoder; at least half of the short clips are."""
    files = sorted(path for path in Path(REAL_DATA or "").glob("video/*/**/*") if path.is_file())[::6]
    num_same = 0
    for path in files:
        try:
            whole = decode_whole_video(path, CANVAS)
            decode_whole_audio(path, 16000)
            check_windows(path, float(whole.times_s[-1]))
        except (NotWholeError, DecodeError):
            continue
        num_same += 1
    assert num_same >= 20


def test_long_and_damaged_clips_are_not_for_the_cache(tmp_path: Path) -> None:
    long = write_clip(tmp_path / "long.mp4", times_s=even_times_s(170, 10), waveform=tone(440, 17, 44100))
    with pytest.raises(NotWholeError):
        decode_whole_video(long, CANVAS)
    with pytest.raises(NotWholeError, match=f"longer than {MAX_SECONDS:g} s"):
        decode_whole_audio(long, 16000)
    clip = _clip(tmp_path, "plain.mp4")
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 900] = bytes(900)
    clip.write_bytes(content)
    with pytest.raises(NotWholeError):
        decode_whole_video(clip, CANVAS)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[PretrainSettings, Manifest]:
    settings = parse(PretrainSettings, tiny_config("pretrain", tmp_path, "data.cache=auto"))
    return settings, open_manifest(settings.data)


def _samples(settings: PretrainSettings, manifest: Manifest, cache: DecodedCache | None) -> list[Any]:
    clips = Clips(manifest.split("train"), manifest.root, cache)
    dataset = ViewDataset(clips, settings.views, relaxation="mild", seed=0, num_views=2)
    return [dataset[0, index] for index in range(len(clips))]


def _same(one: list[Any], other: list[Any]) -> bool:
    keys = ("video", "audio")
    return all(np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in keys)


def _files(manifest: Manifest) -> list[Path]:
    return sorted(path for path in (manifest.directory / "decoded").glob("*/*/*") if path.is_file())


def _nothing(files: list[Path]) -> None:
    pass


def _truncate(files: list[Path]) -> None:
    for path in files:
        os.truncate(path, path.stat().st_size // 2)


def _empty(files: list[Path]) -> None:
    for path in files:
        path.write_bytes(b"")


def _remove(files: list[Path]) -> None:
    files[0].unlink()


@pytest.mark.parametrize("happens", [_nothing, _truncate, _empty, _remove])
def test_samples_are_the_same_whatever_happens_to_the_cache(
    prepared: tuple[PretrainSettings, Manifest], happens: Callable[[list[Path]], None]
) -> None:
    settings, manifest = prepared
    expected = _samples(settings, manifest, None)
    assert _same(_samples(settings, manifest, open_cache(manifest, settings.data, settings.views)), expected)
    files = _files(manifest)
    assert len(files) == 2 * len(expected)
    happens(files)
    assert _same(_samples(settings, manifest, open_cache(manifest, settings.data, settings.views)), expected)
    assert _files(manifest) == files


def test_a_clip_that_has_changed_is_decoded_again(prepared: tuple[PretrainSettings, Manifest]) -> None:
    settings, manifest = prepared
    cache = open_cache(manifest, settings.data, settings.views)
    _samples(settings, manifest, cache)
    first, second = (manifest.root / path for path in manifest.split("train")["path"][:2])
    first.write_bytes(second.read_bytes())
    manifest.clips.loc[manifest.clips["path"] == str(first.relative_to(manifest.root)), "mtime_ns"] += 1
    assert _same(_samples(settings, manifest, cache), _samples(settings, manifest, None))


def test_a_full_disk_ends_the_writing_and_nothing_else(
    prepared: tuple[PretrainSettings, Manifest], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, manifest = prepared
    cache = open_cache(manifest, settings.data, settings.views)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert _same(_samples(settings, manifest, cache), _samples(settings, manifest, None))
    assert caplog.text.count("No space left on device") == 1
    assert not _files(manifest)


def test_too_little_room(
    prepared: tuple[PretrainSettings, Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    settings, manifest = prepared
    expected = decoded_bytes(manifest.clips, settings.views)
    num_frames, num_seconds = 18 * 40, 18 * 2.5
    assert expected == pytest.approx(num_frames * 32 * 32 * 3 + num_seconds * 16000 * 4, rel=0.03)
    monkeypatch.setattr(decoded_cache, "AUTO_BYTES", expected - 1)
    caplog.set_level("INFO")
    assert open_cache(manifest, settings.data, settings.views) is None
    assert "clips are decoded each time" in caplog.text
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: os.statvfs_result)
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    chosen = settings.data.model_copy(update={"cache": str(tmp_path)})
    with pytest.raises(OSError, match=r"data.cache: the decoded clips need .* has room for 0.00 GB: choose"):
        open_cache(manifest, chosen, settings.views)


def test_auto_removes_what_was_not_used_for_a_day(
    prepared: tuple[PretrainSettings, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, manifest = prepared
    old = manifest.directory / "decoded" / "old"
    old.mkdir(parents=True)
    (old / "bytes").write_text("100")
    monkeypatch.setattr(decoded_cache, "AUTO_BYTES", decoded_bytes(manifest.clips, settings.views) + 50)
    assert open_cache(manifest, settings.data, settings.views) is None
    os.utime(old / "bytes", (0, 0))
    assert open_cache(manifest, settings.data, settings.views) is not None
    assert not old.exists()


def test_a_slurm_job_keeps_them_on_its_own_disk_or_not_at_all(
    prepared: tuple[PretrainSettings, Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, manifest = prepared
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # may be the node's /tmp, which nobody empties
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert open_cache(manifest, settings.data, settings.views) is None
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert open_cache(manifest, settings.data, settings.views) is not None
    assert list(tmp_path.glob("crisscross-decoded-*/*/bytes"))


def test_a_folder_that_cannot_be_is_one_line(prepared: tuple[PretrainSettings, Manifest]) -> None:
    settings, manifest = prepared
    with pytest.raises(ValueError, match=r"data.cache=decoded: expected off, auto"):
        parse(type(settings.data), {**settings.data.model_dump(), "cache": "decoded"})
    for folder, error in (
        ("$NO_SUCH_DISK/x", "NO_SUCH_DISK is not set"),
        ("/proc/nothing", "data.cache: cannot write"),
    ):
        chosen = settings.data.model_copy(update={"cache": folder})
        with pytest.raises((ValueError, OSError), match=error):
            open_cache(manifest, chosen, settings.views)


def test_a_pretraining_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    found = []
    for name in ("off", "auto"):
        config = tiny_config("pretrain", tmp_path, f"data.cache={name}")
        run = RunDirectory.create("pretrain", {**config, "runs_root": str(tmp_path / name)})
        assert pretrain(run)
        weights = torch.load(run.path / "video_backbone.pt", weights_only=True)
        found.append((identity("pretrain", config), history(run), weights))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(weight, found[1][2][key]) for key, weight in found[0][2].items())
