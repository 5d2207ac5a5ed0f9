"""Costs on this machine: ``uv run python -m tests.benchmarks [SCALE]``, SCALE being demo (default) or paper.

``uv run python -m tests.benchmarks prepare FOLDER ...``: how fast files are probed (tests/benchmark_prepare.py).
``uv run python -m tests.benchmarks copies FOLDER``: what compact copies cost and bring, and how fast clips get to a
node (tests/benchmark_copies.py).
``uv run python -m tests.benchmarks evaluation [FOLDER]``: dense tests, and the SVM of ESC-50
(tests/benchmark_evaluation.py).
``uv run python -m tests.benchmarks methods [SCALE [BATCH]]``: what a step of each method costs
(tests/benchmark_methods.py).
``uv run python -m tests.benchmarks reading [NUM_RUNS]``: how long the tables' runs take to read from a store of 10,000,
compared with MLflow's own search (tests/benchmark_reading.py).

Prints clips a second through decoding and transforms on one core, training samples a second, seconds from the start of
the process to the first step, and how long a checkpoint holds the loop up. Takes a minute or two, in a temporary
folder.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.loader import Clips, ViewDataset, collate
from crisscross.run.run_dir import RunDirectory
from crisscross.training.augment import augmented_views
from tests import benchmark_copies, benchmark_evaluation, benchmark_methods, benchmark_prepare, benchmark_reading
from tests.support import full_history

STEPS = {"demo": 40, "paper": 4}
BATCH = {"demo": 32, "paper": 4}


def main(scale: str = "demo") -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        config = _config(scale, Path(name))
        print(f"scale={scale}, one thread, no loader workers, {BATCH[scale]} samples a step")
        decode_rate, transform_rate = _decode_and_transform(parse(PretrainSettings, config))
        both = 1 / (1 / decode_rate + 1 / transform_rate)
        print(f"decode, two views a clip              {decode_rate:8.1f} clips/s a core")
        print(f"transform, two views a clip           {transform_rate:8.1f} clips/s a core")
        print(f"decode + transform                    {both:8.1f} clips/s a core")
        run = RunDirectory.create("pretrain", config)
        done = subprocess.run([sys.executable, "-m", "launch.job", str(run.path)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        rates = [metrics["time/samples_per_s"] for _, metrics in full_history(run)][1:]
        print(f"training, decoding included           {statistics.median(rates):8.1f} samples/s")
        log = done.stdout + done.stderr
        (startup,) = re.findall(r"first step done ([\d.]+) s after", log)
        print(f"process start to end of first step    {float(startup):8.1f} s")
        (stall,) = re.findall(r"held training up for (\d+) ms", log)
        size = sum(path.stat().st_size for path in run.checkpoints.glob("*.pt")) / 1e6
        print(f"a checkpoint of {size:6.1f} MB stalls       {int(stall) / 1e3:8.3f} s")


def _config(scale: str, folder: Path) -> dict:
    clips = BATCH[scale] * 2
    overrides = [
        f"scale={scale}",
        f"data.root={folder / 'data'}",
        f"runs_root={folder / 'runs'}",
        "data.toy.num_classes=2",
        f"data.toy.train_clips_per_class={clips // 2}",
        "data.toy.val_clips_per_class=0",
        "data.toy.test_clips_per_class=1",
        f"training.epochs={STEPS[scale] // 2}",  # two steps an epoch
        "training.draws_per_clip=1",
        f"training.global_batch_size={clips // 2}",
        "training.keep_epochs=[]",
        "training.precision=fp32",
        "optim.groups.base.warmup_epochs=1",
        "execution.num_workers=0",
        "execution.device=cpu",
        "execution.checkpoint_minutes=600",
    ]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("pretrain", overrides=overrides), resolve=True)
    return {**config, "data": prepare(config["data"], progress=False)}


def _decode_and_transform(settings: PretrainSettings) -> tuple[float, float]:
    """Return clips a second through the decoder and through the transforms."""
    manifest = open_manifest(settings.data)
    clips = Clips(manifest.split("train"), manifest.root)
    dataset = ViewDataset(clips, settings.views, relaxation="mild", seed=0, num_views=2)
    batch = collate([dataset[0, index] for index in range(len(clips))])  # warm the file cache
    started = time.perf_counter()
    for epoch in (1, 2):
        batch = collate([dataset[epoch, index] for index in range(len(clips))])
    decoding = (time.perf_counter() - started) / 2
    video = VideoTransformSettings(**settings.views.video.transform)
    audio = AudioTransformSettings(**settings.views.audio.transform)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        augmented_views(batch, seed=0, device=torch.device("cpu"), video=video, audio=audio)
        times.append(time.perf_counter() - started)
    return len(clips) / decoding, len(clips) / statistics.median(times[1:])


OTHERS = {
    "prepare": benchmark_prepare.main,
    "copies": benchmark_copies.main,
    "evaluation": benchmark_evaluation.main,
    "methods": benchmark_methods.main,
    "reading": benchmark_reading.main,
}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in OTHERS:
        OTHERS[sys.argv[1]](*sys.argv[2:])
    else:
        main(*sys.argv[1:])
