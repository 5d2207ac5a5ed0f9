"""Tiny networks, views and runs for the tests of the methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from crisscross.config.experiment import ModelSettings
from crisscross.methods.base import Views
from crisscross.run.run_dir import RunDirectory
from tests.support import tiny_config

TINY = ModelSettings(
    video={"depth": 10, "width": 4},
    audio={"layers": (1, 1, 1, 1), "width": 4},
    projector={"hidden_dim": 16, "output_dim": 8, "num_layers": 3},
    predictor={"hidden_dim": 4},
)


def random_views(
    clip_ids: Sequence[int], *, seed: int = 0, num_views: int = 1, draw_seed: int = 0, side_px: int = 16
) -> Views:
    """Return random views of these clips."""
    generator, num = torch.Generator().manual_seed(seed), len(clip_ids)
    return Views(
        video=torch.randn(num_views, num, 3, 4, side_px, side_px, generator=generator),
        audio=torch.randn(num_views, num, 1, 40, 32, generator=generator),
        clip_ids=torch.tensor([*clip_ids]),
        labels=torch.zeros(num, dtype=torch.long),
        epoch=0,
        seed=draw_seed,
    )


def tiny_run(folder: Path, name: str, *overrides: str) -> RunDirectory:
    """Return the run directory of a tiny pretraining in ``folder/name``; runs of a folder share clips."""
    config = tiny_config("pretrain", folder, *overrides)
    return RunDirectory.create("pretrain", {**config, "runs_root": str(folder / name)})
