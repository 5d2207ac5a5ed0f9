"""How figures look, and how they become files: readable in print and without colours, the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, TypedDict

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
"""Okabe and Ito's, which people with any kind of colour vision tell apart; those that print best come first."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "h")
"""A second way to tell apart what has different colours."""
RIGHT, WRONG = COLOURS[0], COLOURS[3]
FLOOR = "#555555"

WIDTH_IN = 6.7
"""Width of a figure: the text of an A4 page (170 mm)."""
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
    "pdf.fonttype": 42,  # letters stay letters, for who edits or searches the file
    "image.cmap": "viridis",
}


class Look(TypedDict):
    """How one of several things is drawn, as keyword arguments."""

    color: str
    marker: str


def styled() -> Any:
    """Return the context in which figures are made and written; what a user has configured has no say."""
    return rc_context({**_defaults(), **SETTINGS})


def _defaults() -> dict[RcKeyType, Any]:
    from matplotlib import rcParamsDefault

    return {key: value for key, value in rcParamsDefault.items() if key != "backend"}


def new_figure(height_in: float, *, width_in: float = WIDTH_IN) -> Figure:
    """Return an empty figure that no window system knows of."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_bytes(figure: Figure) -> dict[str, bytes]:
    """Return a figure as ``png`` and as ``pdf``. Neither holds a time or a version of a program that drew it."""
    with styled():
        files = {}
        for extension, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=extension, metadata=metadata)
            files[extension] = buffer.getvalue()
        return files


def look_of(number: int) -> Look:
    """Return colour and marker of the n-th of several things; no two of the first 24 have both in common."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def bare(axes: Axes) -> None:
    """Take ticks and frame off a picture."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def frame(axes: Axes, *, is_right: bool) -> None:
    """Draw a frame around a picture that says right or wrong: by colour, by line, and by a sign in a corner."""
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


def evenly(things: Sequence[Any], num: int) -> list[Any]:
    """Return some of many, evenly spaced, first and last among them: a choice that looks at no result."""
    if len(things) <= num:
        return list(things)
    if num == 1:
        return [things[0]]
    return [things[round(place * (len(things) - 1) / (num - 1))] for place in range(num)]
