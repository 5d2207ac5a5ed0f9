"""Numbers of the paper (analysis/published), under the names of the project's settings."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "published"

NAMES = {
    "ucf101": "UCF101",
    "hmdb51": "HMDB51",
    "esc50": "ESC-50",
    "dcase2013": "DCASE",
    "kinetics_sound": "Kinetics-Sound",
    "kinetics400": "Kinetics400",
    "audioset": "AudioSet",
    "crisscross": "CrissCross",
    "xdc": "XDC",
    "avid": "AVID",
    "cmacc": "CM-ACC",
    "supervised": "Supervised",
}
"""Printed names of methods and datasets, by their name in settings."""

_SETTINGS = {name.replace("ESC-50", "ESC50"): key for key, name in NAMES.items()}


def shown(name: str) -> str:
    """Return the printed name of a method or a dataset."""
    return NAMES.get(name, name)


@cache
def rows_of(table: str) -> tuple[dict[str, str], ...]:
    """Return a table's rows, names as in settings, numbers as printed.

    Args:
        table: ``table1``, ``table2``, ``table4`` or ``table5``.
    """
    with (FOLDER / f"{table}.csv").open(newline="") as file:
        return tuple(
            {_SETTINGS.get(key, key): _SETTINGS.get(text, text) for key, text in row.items()}
            for row in csv.DictReader(file)
        )
