"""Tables as data, before they become Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One number, or the reason why it is missing.

    Attributes:
        text: the printed text, such as ``84.2 ± 1.3 (n=3)`` or ``running 41 %``.
        is_best: whether it is the best of its column or row.
        is_missing: whether the text is a reason.
        run_ids: MLflow runs of the number.
    """

    text: str
    is_best: bool = False
    is_missing: bool = False
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: its heading.
        cells: one per column.
        is_random_init: whether it is the random-init baseline, which is set apart.
    """

    label: str
    cells: tuple[Cell, ...]
    is_random_init: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption, notes and records.

    Attributes:
        name: of its files, such as ``table3``.
        title: such as ``Table 3``.
        caption: what the numbers are, and how to read them.
        row_header: heading of the first column.
        columns: group (a dataset) and label (a modality) of each further column.
        rows: the rows, random-init baseline last.
        notes: sentences below the table.
        records: one dict per cell, for the CSV.
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
