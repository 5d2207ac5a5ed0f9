"""Figure 5: a query and its nearest neighbours, video to video and audio to audio."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.base import Drawing, NotThereError, Wanted, first, run_directory
from analysis.figures.figure4 import first_of_classes
from analysis.figures.style import bare, frame, new_figure, styled
from analysis.runs import StudyRuns, reason_missing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import SubFigure

    from analysis.figures.evaluated_run import EvaluatedRun

NUM_QUERIES, NUM_NEIGHBOURS = 5, 5
"""Queries of each kind, and neighbours of each (chosen by us)."""
STREAMS = {"v": "video to video", "a": "audio to audio"}
WIDTH_IN, ROW_IN = 5.6, 0.94


@dataclass(frozen=True)
class Block:
    """The queries of one kind.

    Attributes:
        row: the evaluation, a row of the frame (as a frame).
        held_out: the evaluation.
        queries: their neighbours, a frame each (rows of ``neighbours.csv``, nearest first).
    """

    row: pd.DataFrame
    held_out: EvaluatedRun
    queries: list[pd.DataFrame]


def build(runs: StudyRuns, wanted: Wanted) -> Drawing:
    """Make the figure from ``neighbours.csv`` of the evaluations of a pretraining.

    Raises:
        NotThereError: no such evaluation is done, or what it needs of their folders is gone.
    """
    blocks, missing = {}, []
    for stream, what in STREAMS.items():
        try:
            blocks[stream] = _block(runs, stream, wanted)
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
        caption=_caption(blocks, wanted),
        runs={STREAMS[stream]: block.row for stream, block in blocks.items()},
        missing=tuple(missing),
    )


def _block(runs: StudyRuns, stream: str, wanted: Wanted) -> Block:
    from analysis.figures.evaluated_run import EvaluatedRun

    frame_of = runs.evaluations
    frame_of = frame_of[(frame_of["protocol"] == "retrieval") & (frame_of["relaxation"] != "")]
    frame_of = frame_of[frame_of["modalities"].map(lambda asked: stream in asked).astype(bool)]
    if frame_of.empty:
        raise NotThereError(f"the study {runs.study} has no evaluation of a pretraining by {stream}")
    done = frame_of[frame_of["status"] == "FINISHED"].sort_values(["downstream_data", "seed", "identity"]).head(1)
    if done.empty:
        row = frame_of.iloc[0].to_dict()
        above = runs.pretrainings[runs.pretrainings["identity"] == row["parent_identity"]]
        raise NotThereError(f"its evaluation: {': '.join(filter(None, reason_missing(row, first(above))))}")
    held_out = EvaluatedRun(run_directory(done.iloc[0].to_dict(), wanted.runs_root))
    found = _neighbours(held_out, stream)
    paths = [path for path in wanted.clips if path in set(found["query"])]
    groups = dict(list(found.groupby("query", sort=False)))
    queries = [groups[path] for path in paths or first_of_classes(held_out, NUM_QUERIES) if path in groups]
    if not queries:
        raise NotThereError(f"{held_out.run.path / 'neighbours.csv'} has no neighbours of the clips to show")
    return Block(done, held_out, queries)


def _neighbours(held_out: EvaluatedRun, stream: str) -> pd.DataFrame:
    """Return the rows of ``neighbours.csv`` of a modality and of the first fold."""
    import pandas as pd

    path = held_out.run.path / "neighbours.csv"
    if not path.is_file():
        raise NotThereError(f"{path} is gone: delete that run directory and launch the study again")
    found = pd.read_csv(io.StringIO(path.read_text()), dtype={"fold": str, "query": str, "neighbour": str})
    found = found[found["modality"] == stream]
    if "fold" in found and held_out.fold.name:
        found = found[found["fold"] == held_out.fold.name]
    return found[found["rank"] <= NUM_NEIGHBOURS].sort_values(["query", "rank"])


def _draw(part: SubFigure, stream: str, block: Block) -> None:
    width = 1 + max(len(query) for query in block.queries)
    grid = part.subplots(len(block.queries), width, squeeze=False)
    pictures = _pictures(block, stream)
    for line, query in zip(grid, block.queries, strict=True):
        for axes in line:
            bare(axes)
        asked = query.iloc[0]
        _show(line[0], pictures[asked["query"]], stream, asked["query_label"])
        for axes, (_, near) in zip(line[1:], query.iterrows(), strict=False):
            _show(axes, pictures[near["neighbour"]], stream, near["neighbour_label"])
            frame(axes, is_right=near["neighbour_label"] == near["query_label"])
    for axes, title in zip(grid[0], ["query", *(f"nearest {1 + place}" for place in range(width - 1))], strict=True):
        axes.set_title(title, pad=3)
    part.suptitle(STREAMS[stream], x=0.01, ha="left", weight="bold", size="medium")


def _pictures(block: Block, stream: str) -> dict[str, np.ndarray]:
    """Return what is shown of each clip, by path: the middle frame, or the spectrogram, of its middle segment."""
    paths = [*dict.fromkeys(path for query in block.queries for path in (query["query"].iloc[0], *query["neighbour"]))]
    shown = block.held_out.middle(block.held_out.rows(paths), stream)
    if stream == "v":
        assert shown.frames is not None  # what was asked for is there
        return dict(zip(paths, shown.frames[:, shown.frames.shape[1] // 2], strict=True))
    assert shown.audio is not None
    return dict(zip(paths, shown.audio[:, 0].numpy(), strict=True))


def _show(axes: Axes, picture: np.ndarray, stream: str, label: Any) -> None:
    if stream == "v":
        axes.imshow(picture, interpolation="nearest")
    else:
        low, high = np.percentile(picture, (5, 99.8))
        axes.imshow(picture, origin="lower", aspect="auto", vmin=low, vmax=max(high, low + 1e-6), cmap="magma")
        axes.set_box_aspect(1)
    axes.set_xlabel(str(label), labelpad=2)


def _caption(blocks: dict[str, Block], wanted: Wanted) -> str:
    parts = []
    for stream, block in blocks.items():
        ranks = [query["neighbour_label"] == query["query_label"] for query in block.queries]
        right, num = sum(int(rank.sum()) for rank in ranks), sum(len(rank) for rank in ranks)
        protocol = block.held_out.settings.downstream
        assert protocol.name == "retrieval"  # as _block has chosen
        recall = block.row.iloc[0].get(f"eval/recall_at_1_{stream}")
        known = f"; R@1 over all queries {100 * recall:.1f} %" if recall is not None and not np.isnan(recall) else ""
        parts.append(
            f" {STREAMS[stream].capitalize()}: {block.held_out.settings.data.name}, {protocol.distance} distance,"
            f" {right} of the {num} neighbours shown are of the query's class{known}."
        )
    choice = "chosen by the caller" if wanted.clips else "the first of evenly spaced classes, chosen before any result"
    return (
        "Nearest neighbours by frozen features. Left a held-out query, then its nearest training clips, nearest first;"
        f" queries are {choice}. A solid blue frame and ✓: of the query's class; a dashed red frame and ✗: of another."
        " Videos by the middle frame of the middle segment, sounds by its log-mel spectrogram (time to the right,"
        f" frequency upwards).{''.join(parts)}"
    )
