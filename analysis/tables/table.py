"""What a table is before it is Markdown, CSV or LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One number, or the reason why there is none.

    Attributes:
        text: what is printed, such as ``84.2 ± 1.3 (n=3)`` or ``running 41 %``.
        is_best: whether it is the best of its column.
        is_missing: whether the text is a reason and no number.
        run_ids: where the number comes from.
    """

    text: str
    is_best: bool = False
    is_missing: bool = False
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: what the line is about.
        cells: one a column.
        is_floor: whether it is set apart as what every other line has to beat.
    """

    label: str
    cells: tuple[Cell, ...]
    is_floor: bool = False


@dataclass(frozen=True)
class Table:
    """A table with all that goes with it.

    Attributes:
        name: of the files it is written to, such as ``table3``.
        title: such as ``Table 3``.
        caption: what the numbers are, and how to read them.
        row_header: heading of the first column.
        columns: for each further column its group (a dataset) and its label (a modality).
        rows: the lines, floor last.
        notes: sentences below the table.
        records: the same cells with everything behind them, one dict a cell, for the CSV.
        about: the first half of the caption: what the numbers are.
    """

    name: str
    title: str
    caption: str
    row_header: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    records: tuple[dict[str, Any], ...]
    about: str = ""
