"""Cost of a step of each method: ``uv run python -m tests.benchmarks methods [SCALE [BATCH]]``.

Every method gets the same views, backbones and batch, in a process of its own with one thread, or on the GPU if there
is one: the median CPU seconds (GPU: seconds) of a step, the maximum of its memory, and the content of a checkpoint. The
work between two epochs (XDC extracts features of all clips and clusters them) is measured separately.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.config.method import method_names
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.optim.build import build_optimizer

NUM_CLIPS = 4096
"""Clips that the methods believe to learn from: their memories and negatives have to come from somewhere."""
STEPS = {"demo": 12, "paper": 4}
BATCH = {"demo": 16, "paper": 4}


def main(scale: str = "demo", batch: str | None = None) -> None:
    """Measure each method in a process of its own and print a line for it.

    Args:
        scale: ``demo`` or ``paper``.
        batch: samples a step; None = 16 and 4.
    """
    size = int(batch or BATCH[scale])
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    print(f"scale={scale}, {size} samples a step, {NUM_CLIPS} clips, {where}")
    heads = ("s/step", 8), ("vs CrissCross", 18), ("memory MB", 10), ("parameters M", 13), ("checkpoint MB", 14)
    print(f"{'method':<12} {'views':>5} " + " ".join(f"{text:>{width}}" for text, width in heads))
    found = {}
    for name in sorted(method_names(), key=lambda name: name != "crisscross"):
        code = f"from tests.benchmark_methods import measure; measure({name!r}, {scale!r}, {size})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[name] = one = json.loads(done.stdout.splitlines()[-1])
        ratio = one["seconds"] / found["crisscross"]["seconds"]
        print(
            f"{name:<12} {one['views']:>5} {one['seconds']:>8.3f} {ratio:>17.2f}x {one['memory_mb']:>10.0f}"
            f" {one['parameters'] / 1e6:>13.2f} {one['state_mb']:>14.1f}",
            flush=True,
        )


def measure(name: str, scale: str, batch: int) -> None:
    """Train on random views for a few steps and print what they took, as JSON."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with initialize_config_module("experiments.conf", version_base="1.3"):
        overrides = [f"scale={scale}", f"method={name}", f"training.global_batch_size={batch}"]
        config = OmegaConf.to_container(compose("pretrain", overrides=overrides), resolve=True)
    settings = parse(PretrainSettings, config)
    method = build_method(settings.method, settings.model, DatasetInfo(NUM_CLIPS, num_classes=10), seed=0).to(device)
    optimizer = build_optimizer(settings.optim, method.parameter_groups())
    if method.needs_epoch_start:
        _begin_epoch(method)
    method.train()
    before = _peak_mb(device)
    seconds = [_step(method, optimizer, _views(settings, method, batch, device, step)) for step in range(STEPS[scale])]
    state = method.state_dict()
    print(
        json.dumps(
            {
                "views": method.num_views,
                "seconds": statistics.median(seconds[1:]),
                "memory_mb": _peak_mb(device) - before,
                "parameters": sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad),
                "state_mb": sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6,
            }
        )
    )


def _step(method: torch.nn.Module, optimizer: torch.optim.Optimizer, views: Views) -> float:
    if views.clip_ids.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if views.clip_ids.is_cuda else time.process_time
    started = clock()
    optimizer.zero_grad(set_to_none=True)
    loss, _ = method(views)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    optimizer.step()
    method.after_step()
    if views.clip_ids.is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def _views(settings: PretrainSettings, method: torch.nn.Module, batch: int, device: torch.device, step: int) -> Views:
    """Return random views of the sizes that the settings say; clips are other ones in each step."""
    generator = torch.Generator().manual_seed(step)
    video, audio = settings.views.video, settings.views.audio
    side, hop = video.transform["crop_px"], audio.transform["hop_samples"]
    pictures = torch.randn(method.num_views, batch, 3, video.num_frames, side, side, generator=generator)
    columns = round(audio.seconds * audio.sample_rate_hz) // hop + 1
    sounds = torch.randn(method.num_views, batch, 1, audio.transform["num_mels"], columns, generator=generator)
    clips = torch.randperm(NUM_CLIPS, generator=generator)[:batch]
    return Views(
        video=pictures.to(device) if "v" in method.modalities else None,
        audio=sounds.to(device) if "a" in method.modalities else None,
        clip_ids=clips.to(device),
        labels=(clips % 10).to(device),
        epoch=0,
        seed=step,
    )


def _begin_epoch(method: torch.nn.Module) -> None:
    """Let a method begin an epoch with random features in place of a look at all clips."""
    generator = torch.Generator().manual_seed(0)
    features = {
        letter: torch.randn(
            NUM_CLIPS, method.get_submodule(f"{name}_backbone").feature_dim, generator=generator
        ).numpy()
        for letter, name in (("v", "video"), ("a", "audio"))
    }
    method.on_epoch_start(
        0, lambda networks: {letter: lambda letter=letter: features[letter] for letter in networks}, seed=0
    )


def _peak_mb(device: torch.device) -> float:
    """Return the most memory that this process has taken so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
