"""What a compact copy costs and brings, and how fast clips get to a node: ``python -m tests.benchmarks copies FOLDER``.

Encoding and decoding are measured in CPU time of one process, one thread, after the files were read once. Decoding is
a training sample: two windows of eight pictures at 16 fps and two of 2 s of sound from one opening of the file, at
places that each round draws again, the same for every copy. Packing and bringing are timed by the clock, on a thousand
files or more, compared with ``cp -r``; the page cache is warm.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from crisscross.config.data import DataSettings
from crisscross.data.build_manifest import build_manifest
from crisscross.data.file_list import media_files
from crisscross.data.manifest import Manifest
from crisscross.data.media.decode import decode_windows
from crisscross.data.prepare import compact
from crisscross.data.prepare.compact_encode import CompactSettings
from crisscross.data.relaxation import Extent, draw_view_starts
from crisscross.data.staging import stage_in
from crisscross.utils.rng import generator

ROUNDS = 3
PAPER_CANVAS = (256, 340)  # height, width
COPIES = {128: (128, 170), 256: PAPER_CANVAS}  # short side, and the canvas that goes with it
NUM_FILES = 1000


def main(folder: str) -> None:
    """Measure and print.

    Args:
        folder: a tree of clips with pictures and sound.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        original = _manifest(Path(folder).absolute(), scratch / "original")
        clips = original.clips
        _read_all(original)
        size = clips["size_bytes"].mean() / 1e3
        print(f"{original.root}: {len(clips)} clips of {size:.0f} kB")
        ways: dict[str, Callable[[int], object]] = {
            f"original, canvas {PAPER_CANVAS}": lambda number: _decode(original, original, PAPER_CANVAS, number)
        }
        for side, canvas in COPIES.items():
            began = time.process_time()
            report = compact.run(original, scratch / f"{side}", CompactSettings(side), jobs=1, progress=False)
            seconds = time.process_time() - began
            size = report.num_bytes / report.num_copied / 1e3
            print(f"copy of short side {side}: {len(clips) / seconds:.2f} clips per CPU-second, {size:.0f} kB a clip")
            copy = _manifest(scratch / f"{side}", scratch / f"{side}-manifest")
            _say_what_changed(original, copy)
            for wanted in dict.fromkeys((canvas, PAPER_CANVAS)):
                ways[f"copy of {side}, canvas {wanted}"] = lambda number, copy=copy, wanted=wanted: _decode(
                    copy, original, wanted, number
                )
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name, act in ways.items():
                began = time.process_time()
                act(number)
                times[name].append(time.process_time() - began)
        for name, seconds in times.items():
            print(f"  decode {name:<32} {len(clips) / statistics.median(seconds):7.1f} samples per CPU-second")
        _move(_many(copy, scratch), scratch)


def _manifest(root: Path, directory: Path) -> Manifest:
    directory.mkdir()
    csv = directory / "list.csv"
    csv.write_text("file,label\n" + "".join(f'"{file}",clip\n' for file in sorted(media_files(root))))
    return build_manifest(directory, root=root, csv=csv, progress=False, jobs=1)


def _read_all(manifest: Manifest) -> None:
    for path in manifest.clips["path"]:
        (manifest.root / path).read_bytes()


def _decode(manifest: Manifest, timed_by: Manifest, canvas: tuple[int, int], number: int) -> None:
    """Decode one training sample of every clip; both manifests list the same clips."""
    clips = zip(manifest.clips["path"], timed_by.clips.itertuples(), strict=True)
    for index, (path, row) in enumerate(clips):
        extent = Extent(row.video_start_s, row.video_end_s, row.audio_start_s, row.audio_end_s)
        rng = generator(0, "benchmark", number, index)
        starts = draw_view_starts("mild", extent, video_seconds=0.5, audio_seconds=2, rng=rng)
        _windows(manifest.root / path, starts.video_s, starts.audio_s, canvas)


def _windows(path: Path, video_s: tuple, audio_s: tuple, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return decode_windows(
        path,
        video_starts_s=video_s,
        num_frames=8,
        frame_rate_hz=16,
        canvas=canvas,
        audio_starts_s=audio_s,
        audio_seconds=2,
        sample_rate_hz=16000,
    )


def _say_what_changed(original: Manifest, copy: Manifest) -> None:
    ratios, correlations, apart_s = [], [], []
    for one, other in zip(original.clips.itertuples(), copy.clips.itertuples(), strict=True):
        canvas, start_s = (int(other.height), int(other.width)), one.audio_start_s + 0.4
        before, heard = _windows(original.root / one.path, (start_s,), (start_s,), canvas)
        after, kept = _windows(copy.root / other.path, (start_s,), (start_s,), canvas)
        ratios.append(10 * np.log10(255**2 / max(np.mean((before.astype(float) - after) ** 2), 1e-9)))
        correlations.append(np.corrcoef(heard[0], kept[0])[0, 1])
        apart_s += [abs(getattr(one, name) - getattr(other, name)) for name in ("video_start_s", "video_end_s")]
        apart_s += [abs(getattr(one, name) - getattr(other, name)) for name in ("audio_start_s", "audio_end_s")]
    print(
        f"  pictures {statistics.median(ratios):.1f} dB (worst {min(ratios):.1f}), sound correlates"
        f" {min(correlations):.6f} or better, ends of streams within {1e3 * max(apart_s):.3f} ms"
    )


def _many(copy: Manifest, scratch: Path) -> Manifest:
    """Return a dataset of a thousand files or more, made of one's clips again and again."""
    root, frames = scratch / "many", []
    for number in range(-(-NUM_FILES // len(copy.clips))):
        shutil.copytree(copy.root, root / str(number), ignore=shutil.ignore_patterns(".*", "*.csv", "*.json"))
        frames.append(copy.clips.assign(path=f"{number}/" + copy.clips["path"]))
    clips = pd.concat(frames, ignore_index=True)
    clips["mtime_ns"] = [(root / path).stat().st_mtime_ns for path in clips["path"]]
    return replace(copy, root=root, clips=clips)


def _move(many: Manifest, scratch: Path) -> None:
    megabytes = many.clips["size_bytes"].sum() / 1e6
    paths = many.clips["path"].tolist()
    data = {"name": "many", "kind": "toy", "root": None, "train_split": "train", "test_split": "test"}
    settings = DataSettings(**data, fingerprint=None, shards=str(scratch / "none"))
    shards = scratch / "shards"
    shards.mkdir()

    def stage(place: str, **changes: object) -> Manifest:
        return stage_in(many, settings.model_copy(update={"stage": str(scratch / place), **changes}))

    ways: dict[str, Callable[[], object]] = {
        "cp -r": lambda: subprocess.run(["cp", "-r", str(many.root), str(scratch / "plain")], check=True),
        "tar": lambda: subprocess.run(
            ["tar", "-chf", str(shards / "clips.tar"), "-C", str(many.root), "."], check=True
        ),
        "stage, file by file": lambda: stage("files"),
        "stage, from a tar file": lambda: stage("from tar", shards=str(shards)),
        "stage again: all is there": lambda: stage("files"),
    }
    print(f"{len(paths)} files, {megabytes:.0f} MB:")
    for name, act in ways.items():
        began = time.perf_counter()
        act()
        seconds = time.perf_counter() - began
        print(f"  {name:<32} {megabytes / seconds:8.0f} MB/s, {len(paths) / seconds:8.0f} files/s")
