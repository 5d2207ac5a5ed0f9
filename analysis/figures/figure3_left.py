"""Figure 3, left: t-SNE of held-out features, without and with L_async."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from analysis.figures.base import Drawing, FigureOptions, NotThereError, listed, pair, plain, run_directory
from analysis.figures.evaluated_run import EvaluatedRun
from analysis.figures.style import bare, evenly, marker_style, new_figure, styled
from analysis.runs import StudyRuns

MAX_CLASSES = 12  # ours: more cannot be distinguished
"""Classes in one plot; of more, evenly spaced ones are shown."""
PERPLEXITY = 30.0
SEED = 0
STREAMS = {"v": "video", "a": "audio"}
ROW_IN = 2.75


def build(runs: StudyRuns, options: FigureOptions) -> Drawing:
    """Draw the figure.

    Raises:
        NotThereError: if there is no pair of evaluations to compare, or their run directories are missing.
    """
    found, missing = {}, []
    for stream in STREAMS:
        try:
            found[stream] = pair(runs, stream)
        except NotThereError as error:
            missing.append(f"{STREAMS[stream]} features: {error}")
    if not found:
        raise NotThereError(missing[0])
    points = {
        (stream, arm): _points(rows, stream, options) for stream, both in found.items() for arm, rows in both.items()
    }
    classes = {stream: sorted(set(points[stream, next(iter(both))][1])) for stream, both in found.items()}
    shown = {stream: evenly(names, MAX_CLASSES) for stream, names in classes.items()}
    with styled():
        figure = new_figure(ROW_IN * len(found))
        grid = figure.subplots(len(found), 2, squeeze=False)
        for line, (stream, both) in zip(grid, found.items(), strict=True):
            for axes, (arm, rows) in zip(line, both.items(), strict=True):
                _scatter(axes, *points[stream, arm], shown[stream])
                top1 = rows.iloc[0].get(f"eval/top1_{stream}")
                axes.set_title(arm if top1 is None or np.isnan(top1) else f"{arm}  (top-1 {100 * top1:.1f} %)")
            line[0].set_ylabel(STREAMS[stream])
            line[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), markerscale=1.4)
    data = {stream: str(next(iter(both.values()))["downstream_data"].iloc[0]) for stream, both in found.items()}
    return Drawing(
        name="figure3-left",
        title="Figure 3, left",
        figure=figure,
        caption=_caption(data, classes),
        runs={f"{plain(arm)}, {STREAMS[stream]}": rows for stream, both in found.items() for arm, rows in both.items()},
        missing=tuple(missing),
    )


def _points(rows: pd.DataFrame, stream: str, options: FigureOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return embedding (N, 2) and classes (N,) of an evaluation's test clips."""
    evaluated = EvaluatedRun(run_directory(rows.iloc[0].to_dict(), options.runs_root))
    labels = evaluated.fold.test["label"].to_numpy()
    chosen = np.isin(labels, evenly(sorted(set(labels)), MAX_CLASSES))
    return embed(evaluated.features(stream)[chosen].mean(axis=1)), labels[chosen]


def embed(features: np.ndarray) -> np.ndarray:
    """Return a t-SNE embedding, independent of the number of cores.

    Args:
        features: (N, D), one row per clip.

    Returns:
        (N, 2), with zero mean.

    Raises:
        NotThereError: if there are fewer than four clips.
    """
    if len(features) < 4:
        raise NotThereError(f"{len(features)} held-out clips are too few for an embedding, which needs 4")
    scaled = np.asarray(features, np.float64)
    spread = scaled.std(axis=0)
    scaled = (scaled - scaled.mean(axis=0)) / np.where(spread > 1e-12, spread, 1)  # as before the linear SVM
    with threadpool_limits(1):  # sums over threads have no fixed order
        embedding = TSNE(
            perplexity=min(PERPLEXITY, (len(scaled) - 1) / 3), init="pca", random_state=SEED, n_jobs=1
        ).fit_transform(scaled)
    return embedding - embedding.mean(axis=0)


def _scatter(axes: Axes, embedding: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    for number, name in enumerate(classes):
        ours = embedding[labels == name]
        style = marker_style(number)
        axes.scatter(
            ours[:, 0],
            ours[:, 1],
            s=15,
            c=style["color"],
            marker=style["marker"],
            linewidths=0.25,
            edgecolors="#555555",
            label=name,
        )
    bare(axes)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#bbbbbb")
    axes.set_box_aspect(1)
    axes.margins(0.05)


def _caption(data: dict[str, str], classes: dict[str, list[str]]) -> str:
    several = "; ".join(
        f"{shown} of the {len(names)} classes of {data[stream]} ({STREAMS[stream]}), evenly spaced in their list"
        for stream, names in classes.items()
        if (shown := len(evenly(names, MAX_CLASSES))) < len(names)
    )
    return (
        f"Held-out clips of {listed(dict.fromkeys(data.values()))} by their frozen features, without and with L_async,"
        f" in two dimensions by t-SNE (perplexity {PERPLEXITY:g} at most, from the principal components, seed {SEED})."
        " A point is a clip, the mean of its segments, each feature scaled to unit variance; colour and shape are its"
        f" class{f' ({several})' if several else ''}. Axes have no unit, and distances between far groups mean nothing;"
        " in brackets, what a linear classifier makes of the same features."
    )
