"""Irregular files are accepted or rejected with the reason, as their list suggests; none is left out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from crisscross.data.build_manifest import build_manifest
from crisscross.data.manifest import Manifest
from tests.requirements import REAL_DATA, needs_real_data

pytestmark = [*needs_real_data, pytest.mark.slow]
DATA = Path(REAL_DATA or "none")

# How each reason starts: files without frames, files without audio, files damaged in one of them.
CANNOT_OPEN = {
    "ebml_unsupported.mkv": "cannot open: ",
    "html_error_page.mp4": "cannot open: ",
    "truncated_no_moov.mp4": "cannot open: ",
    "zero_bytes.mp4": "empty file (0 bytes)",
}
NO_FRAMES = {
    "audio_only.mp4": "no video stream",
    "mp3_with_cover.mp3": "no video stream (only a cover picture)",
    "raw_annexb.h264": "no timestamps",
    "tiny.avi": "the video stream holds no frames",
    "tiny_with_audio.mp4": "no video stream",
    "bit_rot.mp4": "does not decode after 3.24 s: ",
    "corrupted_packet.mp4": "does not decode after 2.70 s: ",
    "truncated_moov_front.mp4": "does not decode after 3.97 s: ",
}
NO_AUDIO = {
    **dict.fromkeys(
        (
            "-dash-first-name-.mp4",
            "animated.gif",
            "av1.mkv",
            "bad_video_sample.mp4",
            "corrupted_packet.mp4",
            "delayed_start.mp4",
            "h264_10bit.mp4",
            "no_audio_stream.mp4",
            "odd_size_66x50.mov",
            "one_frame.mp4",
            "raw_annexb.h264",
            "rotate180.mov",
            "rotate90.mov",
            "tiny.avi",
            "video_only.mp4",
        ),
        "no audio stream",
    ),
    "bit_rot.mp4": "the audio does not decode after 2.00 s: ",
}
VIDEO_REASONS = {
    ("video", "audio"): {**NO_AUDIO, **NO_FRAMES, **CANNOT_OPEN},
    ("video",): {**NO_FRAMES, **CANNOT_OPEN},
    ("audio",): {**NO_AUDIO, **CANNOT_OPEN},
}
NO_SAMPLES = "the audio stream holds no samples"
AUDIO_REASONS = {
    ("audio",): {"wav_20_bytes_of_data.wav": NO_SAMPLES, "wav_header_only.wav": NO_SAMPLES},
}


def check(folder: Path, reasons: dict[str, str], require: tuple[str, ...], directory: Path) -> Manifest:
    with (folder / "torture.csv").open(newline="", encoding="utf-8") as table:
        names = {row["file"] for row in csv.DictReader(table)}
    options = {"root": folder, "csv": folder / "torture.csv", "label_column": "file", "split_column": None}
    manifest = build_manifest(directory, **options, require=require, thorough=True, progress=False)
    found = dict(zip(manifest.rejected["path"], manifest.rejected["reason"], strict=True))
    assert set(manifest.clips["path"]) == names - set(reasons)
    assert set(found) == set(reasons)
    for name, reason in reasons.items():
        assert found[name].startswith(reason), name
    return manifest


def test_video(tmp_path: Path) -> None:
    for require, reasons in VIDEO_REASONS.items():
        manifest = check(DATA / "video" / "torture", reasons, require, tmp_path)
        if "audio" not in require:
            silent = manifest.clips.set_index("path")["audio_start_s"].isna()
            assert set(silent[silent].index) == set(NO_AUDIO) - set(NO_FRAMES)
    assert len(VIDEO_REASONS["video", "audio"]) == 24


def test_audio(tmp_path: Path) -> None:
    """Files with at least one audio sample are usable as audio; none is usable as video."""
    manifest = check(DATA / "audio" / "torture", AUDIO_REASONS["audio",], ("audio",), tmp_path)
    assert (manifest.clips["audio_end_s"] > manifest.clips["audio_start_s"]).all()
    assert manifest.clips["width"].isna().all()
    folder = DATA / "audio" / "torture"
    with pytest.raises(ValueError, match=r"none of the 13 files .* can be used \(.* x no video stream"):
        build_manifest(tmp_path, root=folder, csv=folder / "torture.csv", label_column="file", progress=False)


def test_real_video_and_audio_files(tmp_path: Path) -> None:
    folder = DATA / "video" / "clips"
    clips = build_manifest(tmp_path / "v", root=folder, csv=folder / "clips.csv", label_column="kind", progress=False)
    assert (len(clips.clips), len(clips.rejected), len(clips.classes)) == (70, 0, 8)
    folder = DATA / "audio" / "esc10"
    options = {"csv": folder / "esc10.csv", "label_column": "category", "split_column": "fold"}
    sounds = build_manifest(tmp_path / "a", root=folder, **options, require=("audio",), progress=False)
    assert (len(sounds.clips), len(sounds.rejected), len(sounds.classes)) == (400, 0, 10)
