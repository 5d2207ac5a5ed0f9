"""Style of the figures, and their reproducible files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, TypedDict

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
"""Okabe and Ito's palette, safe for color-blind readers; colors that print best come first."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "h")
"""Markers, so that no series differs by color alone."""
RIGHT, WRONG = COLORS[0], COLORS[3]
RANDOM_INIT_COLOR = "#555555"

WIDTH_IN = 6.7
"""Width of a figure: the text width of an A4 page (170 mm)."""
DOTS_PER_INCH = 200
SIZE_PT = 8.0

SETTINGS: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": SIZE_PT,
    "axes.titlesize": SIZE_PT,
    "axes.labelsize": SIZE_PT,
    "xtick.labelsize": SIZE_PT - 1,
    "ytick.labelsize": SIZE_PT - 1,
    "legend.fontsize": SIZE_PT - 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": DOTS_PER_INCH,
    "savefig.dpi": DOTS_PER_INCH,
    "pdf.fonttype": 42,  # text stays text, so that the file can be searched and edited
    "image.cmap": "viridis",
}


class MarkerStyle(TypedDict):
    """Color and marker of a series, as keyword arguments for Matplotlib."""

    color: str
    marker: str


def styled() -> Any:
    """Return the Matplotlib context of the figures; it ignores the user's configuration."""
    return rc_context({**_defaults(), **SETTINGS})


def _defaults() -> dict[RcKeyType, Any]:
    return {key: value for key, value in rcParamsDefault.items() if key != "backend"}


def new_figure(height_in: float, *, width_in: float = WIDTH_IN) -> Figure:
    """Return an empty figure that needs no window system.

    Args:
        height_in: height in inches.
        width_in: width in inches.
    """
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_bytes(figure: Figure) -> dict[str, bytes]:
    """Return a figure as ``png`` and ``pdf``, without time or program version."""
    with styled():
        files = {}
        for extension, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=extension, metadata=metadata)
            files[extension] = buffer.getvalue()
        return files


def marker_style(number: int) -> MarkerStyle:
    """Return color and marker of the n-th series (24 distinct pairs)."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def bare(axes: Axes) -> None:
    """Remove ticks and frame of an image."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def frame(axes: Axes, *, is_right: bool) -> None:
    """Frame an image as right or wrong by color, line and sign."""
    for spine in axes.spines.values():
        spine.set(
            visible=True,
            color=RIGHT if is_right else WRONG,
            linewidth=1.8,
            linestyle="-" if is_right else (0, (3, 1.5)),
        )
    sign = "✓" if is_right else "✗"
    box = {"boxstyle": "square,pad=0.15", "facecolor": RIGHT if is_right else WRONG, "edgecolor": "none"}
    axes.text(0.98, 0.97, sign, transform=axes.transAxes, ha="right", va="top", color="white", size=7, bbox=box)


def evenly(items: Sequence[Any], num: int) -> list[Any]:
    """Return ``num`` evenly spaced items, including first and last."""
    if len(items) <= num:
        return list(items)
    if num == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (num - 1))] for index in range(num)]
