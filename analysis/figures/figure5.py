"""Figure 5: queries and their nearest neighbors, by video and by audio."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from analysis.figures.base import Drawing, FigureOptions, NotThereError, first, run_directory
from analysis.figures.evaluated_run import EvaluatedRun
from analysis.figures.figure4 import first_of_classes
from analysis.figures.style import bare, frame, new_figure, styled
from analysis.runs import StudyRuns, reason_missing

NUM_QUERIES, NUM_NEIGHBORS = 5, 5  # ours
"""Queries of each stream, and neighbors of each query."""
STREAMS = {"v": "video to video", "a": "audio to audio"}
WIDTH_IN, ROW_IN = 5.6, 0.94


@dataclass(frozen=True)
class QueryBlock:
    """The queries of one stream.

    Attributes:
        row: the evaluation's row, as a frame.
        evaluated: the evaluation's features, networks and clips.
        queries: a frame with the neighbors of each query (rows of ``neighbours.csv``, nearest first).
    """

    row: pd.DataFrame
    evaluated: EvaluatedRun
    queries: list[pd.DataFrame]


def build(runs: StudyRuns, options: FigureOptions) -> Drawing:
    """Draw the figure from ``neighbours.csv`` of a retrieval evaluation.

    Raises:
        NotThereError: if no such evaluation is done, or its run directory is missing.
    """
    blocks, missing = {}, []
    for stream, what in STREAMS.items():
        try:
            blocks[stream] = _block(runs, stream, options)
        except NotThereError as error:
            missing.append(f"{what}: {error}")
    if not blocks:
        raise NotThereError(missing[0])
    with styled():
        heights = [len(block.queries) for block in blocks.values()]
        figure = new_figure(ROW_IN * sum(heights) + 0.35 * len(blocks), width_in=WIDTH_IN)
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (stream, block) in zip(parts, blocks.items(), strict=True):
            _draw(part, stream, block)
    return Drawing(
        name="figure5",
        title="Figure 5",
        figure=figure,
        caption=_caption(blocks, options),
        runs={STREAMS[stream]: block.row for stream, block in blocks.items()},
        missing=tuple(missing),
    )


def _block(runs: StudyRuns, stream: str, options: FigureOptions) -> QueryBlock:
    evaluations = runs.evaluations
    evaluations = evaluations[(evaluations["protocol"] == "retrieval") & (evaluations["relaxation"] != "")]
    evaluations = evaluations[evaluations["modalities"].map(lambda listed: stream in listed).astype(bool)]
    if evaluations.empty:
        raise NotThereError(f"the study {runs.study} has no evaluation of a pretraining by {stream}")
    done = evaluations[evaluations["status"] == "FINISHED"].sort_values(["downstream_data", "seed", "identity"]).head(1)
    if done.empty:
        row = evaluations.iloc[0].to_dict()
        above = runs.pretrainings[runs.pretrainings["identity"] == row["parent_identity"]]
        raise NotThereError(f"its evaluation: {': '.join(filter(None, reason_missing(row, first(above))))}")
    evaluated = EvaluatedRun(run_directory(done.iloc[0].to_dict(), options.runs_root))
    found = _neighbors(evaluated, stream)
    paths = [path for path in options.clips if path in set(found["query"])]
    groups = dict(list(found.groupby("query", sort=False)))
    queries = [groups[path] for path in paths or first_of_classes(evaluated, NUM_QUERIES) if path in groups]
    if not queries:
        raise NotThereError(f"{evaluated.run.path / 'neighbours.csv'} has no neighbours of the clips to show")
    return QueryBlock(done, evaluated, queries)


def _neighbors(evaluated: EvaluatedRun, stream: str) -> pd.DataFrame:
    """Return the rows of ``neighbours.csv`` of a modality and the first fold."""
    path = evaluated.run.path / "neighbours.csv"
    if not path.is_file():
        raise NotThereError(f"{path} is missing: delete that run directory and launch the study again")
    found = pd.read_csv(
        io.StringIO(path.read_text(encoding="utf-8")), dtype={"fold": str, "query": str, "neighbour": str}
    )
    found = found[found["modality"] == stream]
    if "fold" in found and evaluated.fold.name:
        found = found[found["fold"] == evaluated.fold.name]
    return found[found["rank"] <= NUM_NEIGHBORS].sort_values(["query", "rank"])


def _draw(part: SubFigure, stream: str, block: QueryBlock) -> None:
    width = 1 + max(len(query) for query in block.queries)
    grid = part.subplots(len(block.queries), width, squeeze=False)
    images = _images(block, stream)
    for line, query in zip(grid, block.queries, strict=True):
        for axes in line:
            bare(axes)
        nearest = query.iloc[0]
        _show(line[0], images[nearest["query"]], stream, nearest["query_label"])
        for axes, (_, near) in zip(line[1:], query.iterrows(), strict=False):
            _show(axes, images[near["neighbour"]], stream, near["neighbour_label"])
            frame(axes, is_right=near["neighbour_label"] == near["query_label"])
    for axes, title in zip(grid[0], ["query", *(f"nearest {1 + place}" for place in range(width - 1))], strict=True):
        axes.set_title(title, pad=3)
    part.suptitle(STREAMS[stream], x=0.01, ha="left", weight="bold", size="medium")


def _images(block: QueryBlock, stream: str) -> dict[str, np.ndarray]:
    """Return the middle frame or the spectrogram of each clip, by path."""
    paths = [*dict.fromkeys(path for query in block.queries for path in (query["query"].iloc[0], *query["neighbour"]))]
    shown = block.evaluated.middle(block.evaluated.rows(paths), stream)
    if stream == "v":
        assert shown.frames is not None  # the stream is video
        return dict(zip(paths, shown.frames[:, shown.frames.shape[1] // 2], strict=True))
    assert shown.audio is not None
    return dict(zip(paths, shown.audio[:, 0].numpy(), strict=True))


def _show(axes: Axes, image: np.ndarray, stream: str, label: Any) -> None:
    if stream == "v":
        axes.imshow(image, interpolation="nearest")
    else:
        low, high = np.percentile(image, (5, 99.8))
        axes.imshow(image, origin="lower", aspect="auto", vmin=low, vmax=max(high, low + 1e-6), cmap="magma")
        axes.set_box_aspect(1)
    axes.set_xlabel(str(label), labelpad=2)


def _caption(blocks: dict[str, QueryBlock], options: FigureOptions) -> str:
    parts = []
    for stream, block in blocks.items():
        ranks = [query["neighbour_label"] == query["query_label"] for query in block.queries]
        right, num = sum(int(rank.sum()) for rank in ranks), sum(len(rank) for rank in ranks)
        protocol = block.evaluated.settings.downstream
        assert protocol.name == "retrieval"  # _block selects these
        recall = block.row.iloc[0].get(f"eval/recall_at_1_{stream}")
        known = f"; R@1 over all queries {100 * recall:.1f} %" if recall is not None and not np.isnan(recall) else ""
        parts.append(
            f" {STREAMS[stream].capitalize()}: {block.evaluated.settings.data.name}, {protocol.distance} distance,"
            f" {right} of the {num} neighbours shown are of the query's class{known}."
        )
    choice = "chosen by the caller" if options.clips else "the first of evenly spaced classes, chosen before any result"
    return (
        "Nearest neighbours by frozen features. Left a held-out query, then its nearest training clips, nearest first;"
        f" queries are {choice}. A solid blue frame and ✓: of the query's class; a dashed red frame and ✗: of another."
        " Videos by the middle frame of the middle segment, sounds by its log-mel spectrogram (time to the right,"
        f" frequency upwards).{''.join(parts)}"
    )
