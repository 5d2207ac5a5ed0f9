"""Speed of probing files, compared with a plain PyAV loop: ``uv run python -m tests.benchmarks prepare FOLDER ...``.

The loop decodes what a probe decodes and checks nothing: eight frames at the start, the last half second, one frame
in the middle, all of the sound. Both run in this process, one thread, in turns, after the files were read once, and are
measured in CPU time, so that what else runs on the machine does not count; then the whole command is timed by the
clock, with one process a CPU.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import av

from crisscross.data.file_list import media_files
from crisscross.data.media.probe import NUM_START_FRAMES, TAIL_S
from crisscross.data.probe_files import probe_one

ROUNDS = 3


def main(*folders: str) -> None:
    """Measure and print.

    Args:
        *folders: trees of clips.
    """
    for folder in folders:
        root = Path(folder).absolute()
        files = sorted(media_files(root))
        if not files:
            raise SystemExit(f"{root} holds no media files: give a folder of clips")
        ways: dict[str, Callable[[], object]] = {
            "plain PyAV loop": lambda root=root, files=files: [_decode(root / file) for file in files],
            "probe": lambda root=root, files=files: [probe_one(root, file, False) for file in files],
        }
        for file in files:
            (root / file).read_bytes()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, act in ways.items():
                seconds[name].append(_cpu_seconds(act))
        print(f"{root}: {len(files)} files")
        for name, times in seconds.items():
            print(f"  {name:<24} {len(files) / statistics.median(times):8.1f} files per CPU-second")
        rate = len(files) / _prepare(root, files)
        print(f"  {'prepare, all CPUs':<24} {rate:8.1f} files/s, start to end of the command")


def _prepare(root: Path, files: Sequence[str]) -> float:
    """Return the seconds that the command takes on a list of all files."""
    stream = "audio" if probe_one(root, files[0], False)["video_problem"] else "video"
    with tempfile.TemporaryDirectory() as directory:
        csv = Path(directory) / "list.csv"
        csv.write_text("file,label\n" + "".join(f'"{file}",clip\n' for file in files))
        command = [sys.executable, "-m", "crisscross.data.prepare", "folder", "--root", str(root), "--csv", str(csv)]
        began = time.perf_counter()
        subprocess.run([*command, "--manifest-root", directory, "--require", stream], check=True, capture_output=True)
        return time.perf_counter() - began


def _cpu_seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def _decode(path: Path) -> None:
    with av.open(str(path)) as container:
        if container.streams.video:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            end = (stream.start_time or 0) + (stream.duration or 0)
            for _ in islice(container.decode(stream), NUM_START_FRAMES):
                pass
            container.seek(max(0, end - int(TAIL_S / stream.time_base)), stream=stream)
            for _ in container.decode(stream):
                pass
            middle = end // 2
            container.seek(middle, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts >= middle:
                    frame.to_ndarray(format="rgb24")
                    break
    with av.open(str(path)) as container:
        if container.streams.audio:
            for _ in container.decode(container.streams.audio[0]):
                pass
