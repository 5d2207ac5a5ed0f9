"""Figure 4: saliency of the video network, without and with L_async."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.ndimage import gaussian_filter

from analysis.figures.base import Drawing, FigureOptions, NotThereError, pair, plain, run_directory
from analysis.figures.evaluated_run import EvaluatedRun
from analysis.figures.saliency import saliency
from analysis.figures.style import bare, evenly, new_figure, styled
from analysis.runs import StudyRuns

NUM_CLIPS, NUM_FRAMES = 6, 4  # ours
"""Clips in the figure, and frames of each."""
BRIGHTEST = 99.5  # ours
"""Percentile of a clip's map that has the brightest color."""
SMOOTHING = 1 / 24  # ours: single pixels follow the strides of the network
"""Standard deviation of the blur, as a part of the frame's width."""
MAP = "inferno"
GAP_PX = 1


def build(runs: StudyRuns, options: FigureOptions) -> Drawing:
    """Draw the figure.

    Raises:
        NotThereError: if there is no pair of evaluations to compare, or their run directories are missing.
    """
    both = pair(runs, "v")
    models = {arm: EvaluatedRun(run_directory(rows.iloc[0].to_dict(), options.runs_root)) for arm, rows in both.items()}
    some = next(iter(models.values()))
    paths = list(options.clips) or first_of_classes(some, NUM_CLIPS)
    clips = some.rows(paths)
    shown = some.middle(clips, "v")
    assert shown.video is not None  # the stream is video
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
    choice = "chosen by the caller" if options.clips else "the first of evenly spaced classes, chosen before any result"
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


def first_of_classes(evaluated: EvaluatedRun, num: int) -> list[str]:
    """Return the first held-out clip of evenly spaced classes.

    Args:
        evaluated: the evaluation.
        num: number of classes.

    Raises:
        NotThereError: if there are no held-out clips.
    """
    rows = evaluated.fold.test.sort_values(["label", "path"]).groupby("label", sort=True).head(1)
    if rows.empty:
        raise NotThereError("there are no held-out clips")
    return evenly(list(rows["path"]), num)


def smooth(maps: np.ndarray) -> np.ndarray:
    """Return maps (N, T, H, W) blurred within each frame."""
    return gaussian_filter(maps, sigma=(0, 0, SMOOTHING * maps.shape[-1], SMOOTHING * maps.shape[-1]))


def strip(frames: np.ndarray) -> np.ndarray:
    """Return frames (T, H, W, 3) side by side with white gaps."""
    gap = np.ones((frames.shape[1], GAP_PX, 3), frames.dtype)
    parts = [part for image in frames for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _overlay(axes: Axes, frames: np.ndarray, map_of_clip: np.ndarray, chosen: list[int]) -> None:
    """Draw a saliency map in colors over gray frames."""
    scale = max(float(np.percentile(map_of_clip, BRIGHTEST)), 1e-12)
    strength = np.clip(map_of_clip[chosen] / scale, 0, 1)[..., None]
    gray = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colors = mpl.colormaps[MAP](strength[..., 0])[..., :3]
    axes.imshow(strip(((1 - strength) * 0.75 * gray + strength * colors).astype(np.float32)), interpolation="nearest")
