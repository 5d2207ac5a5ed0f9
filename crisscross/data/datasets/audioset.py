"""AudioSet: files named by YouTube id, with the segment CSVs and ``class_labels_indices.csv``.

A clip has several labels; the manifest holds the display name of the first, as pretraining uses no labels. Both
training lists count as ``train``; one of them suffices.
"""

from __future__ import annotations

import csv as csv_format
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, lines, match, table
from crisscross.data.datasets.youtube import video_id, wrong_part
from crisscross.data.file_list import ListedClip

LABELS = "class_labels_indices.csv"

SIDES = {
    "train": re.compile(r"(un)?balanced_train_segments\.csv"),
    "eval": re.compile(r"eval_segments\.csv"),
}

USUAL = (".", "metadata", "annotations", "csv", "..")


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the clips of AudioSet.

    Raises:
        FileNotFoundError: if the segment CSVs or the class labels are missing.
        ValueError: if a line cannot be read, or its label is not one of AudioSet.
    """
    patterns = "|".join(side.pattern for side in SIDES.values())
    paths = {path.name: path for path in dataset.find_lists(f"{patterns}|{re.escape(LABELS)}", USUAL)}
    folders = {path.parent for path in paths.values()}
    if LABELS not in paths:
        raise dataset.lacks(LABELS, folders)
    names = dict(cells for _, cells in table(paths[LABELS], ("mid", "display_name")))
    expected, starts_s = [], {}
    for split, pattern in SIDES.items():
        segments = [path for name, path in paths.items() if pattern.fullmatch(name)]
        if not segments:
            raise dataset.lacks(f"{'balanced_train' if split == 'train' else split}_segments.csv", folders)
        for path in segments:
            for where, key, start_s, end_s, mids in _segments(path):
                if mids[0] not in names:
                    raise ValueError(f"{where}: the label {mids[0]!r} is not in {LABELS}: give the original lists")
                starts_s[key] = start_s
                file = f"{path.stem}/{key}_{start_s:06.0f}_{end_s:06.0f}.mp4"
                expected.append(ExpectedClip(key, file, names[mids[0]], split))
    listed = match(expected, dataset.files(), video_id)
    return [row if row.problem else replace(row, problem=wrong_part(row.path, starts_s)) for row in listed]


def _segments(path: Path) -> Iterator[tuple[str, str, float, float, list[str]]]:
    for where, line in lines(path):
        if line.startswith("#"):
            continue
        cells = next(csv_format.reader([line], skipinitialspace=True))
        try:
            key, start_s, end_s, mids = cells[0], float(cells[1]), float(cells[2]), cells[3].strip().split(",")
        except (IndexError, ValueError):
            raise ValueError(f"{where}: {line!r} is not id, start, end, labels: give the original list") from None
        yield where, key, start_s, end_s, mids
