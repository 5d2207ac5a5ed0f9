"""Figure 4: where the video network looks, frame by frame, without and with L_async."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.base import Drawing, NotThereError, Wanted, pair, plain, run_directory
from analysis.figures.style import bare, evenly, new_figure, styled
from analysis.runs import StudyRuns

if TYPE_CHECKING:
    from analysis.figures.evaluated_run import EvaluatedRun

NUM_CLIPS, NUM_FRAMES = 6, 4
"""Clips, and frames of each, that are shown (chosen by us)."""
BRIGHTEST = 99.5
"""Percentile of a clip's map that is drawn as the brightest (chosen by us)."""
SMOOTHING = 1 / 24
"""Of a map, as a part of the frame's width: single pixels follow the strides of the network (chosen by us)."""
MAP = "inferno"
GAP_PX = 1


def build(runs: StudyRuns, wanted: Wanted) -> Drawing:
    """Make the figure.

    Raises:
        NotThereError: there is no such pair of evaluations, or what it needs of their folders is gone.
    """
    import torch

    from analysis.figures.evaluated_run import EvaluatedRun
    from analysis.figures.saliency import saliency

    both = pair(runs, "v")
    models = {arm: EvaluatedRun(run_directory(rows.iloc[0].to_dict(), wanted.runs_root)) for arm, rows in both.items()}
    some = next(iter(models.values()))
    paths = list(wanted.clips) or first_of_classes(some, NUM_CLIPS)
    clips = some.rows(paths)
    shown = some.middle(clips, "v")
    assert shown.video is not None  # what was asked for is there
    assert shown.frames is not None
    torch.set_num_threads(1)  # sums over threads have no fixed order
    maps = {arm: smooth(saliency(model.networks()["v"], shown.video).numpy()) for arm, model in models.items()}
    with styled():
        figure = new_figure(0.25 + 0.56 * len(clips))
        grid = figure.subplots(len(clips), 1 + len(maps), squeeze=False)
        chosen = evenly(range(shown.frames.shape[1]), NUM_FRAMES)
        for place, line in enumerate(grid):
            line[0].imshow(strip(shown.frames[place][chosen]), interpolation="nearest")
            for axes, arm in zip(line[1:], maps, strict=True):
                _overlay(axes, shown.frames[place][chosen], maps[arm][place], chosen)
            line[0].set_ylabel(clips["label"].iloc[place], rotation=0, ha="right", va="center")
            for axes in line:
                bare(axes)
        for axes, title in zip(grid[0], ["frames", *maps], strict=True):
            axes.set_title(title)
    data = some.settings.data.name
    choice = "chosen by the caller" if wanted.clips else "the first of evenly spaced classes, chosen before any result"
    return Drawing(
        name="figure4",
        title="Figure 4",
        figure=figure,
        caption=f"Where the video network looks: held-out clips of {data}, {choice} ({', '.join(paths)}); frames"
        f" {', '.join(str(1 + number) for number in chosen)} of the {shown.frames.shape[1]} of the middle segment."
        " Maps: the length, over the colours, of the gradient of the representation's squared norm with respect to the"
        f" frames, blurred (Gaussian, 1/{1 / SMOOTHING:.0f} of the width); bright = changing this place moves the"
        " representation much. Each clip and model has its own scale.",
        runs={plain(arm): rows for arm, rows in both.items()},
    )


def first_of_classes(held_out: EvaluatedRun, num: int) -> list[str]:
    """Return the first held-out clip of evenly spaced classes: a choice that looks at no result.

    Raises:
        NotThereError: there are no held-out clips.
    """
    rows = held_out.fold.test.sort_values(["label", "path"]).groupby("label", sort=True).head(1)
    if rows.empty:
        raise NotThereError("there are no held-out clips")
    return evenly(list(rows["path"]), num)


def smooth(maps: np.ndarray) -> np.ndarray:
    """Return maps (N, T, H, W) blurred within each frame."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(maps, sigma=(0, 0, SMOOTHING * maps.shape[-1], SMOOTHING * maps.shape[-1]))


def strip(frames: np.ndarray) -> np.ndarray:
    """Return frames (T, H, W, 3) beside each other, a white gap between two."""
    gap = np.ones((frames.shape[1], GAP_PX, 3), frames.dtype)
    parts = [part for picture in frames for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _overlay(axes: Axes, frames: np.ndarray, map_of_clip: np.ndarray, chosen: list[int]) -> None:
    """Draw a map in colours over grey frames; pale where nothing moves the representation."""
    import matplotlib as mpl

    scale = max(float(np.percentile(map_of_clip, BRIGHTEST)), 1e-12)
    strength = np.clip(map_of_clip[chosen] / scale, 0, 1)[..., None]
    grey = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colours = mpl.colormaps[MAP](strength[..., 0])[..., :3]
    axes.imshow(strip(((1 - strength) * 0.75 * grey + strength * colours).astype(np.float32)), interpolation="nearest")
