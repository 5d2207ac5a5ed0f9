"""Kinetics400, and Kinetics-Sound, which is 32 of its classes.

``train/<class>/<id>_000010_000020.mp4`` and ``val/...``, or without class folders; the lists are ``train.csv`` and
``val.csv`` (or ``validate.csv``) with the columns label, youtube_id, time_start, time_end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, match, read_classes, table
from crisscross.data.datasets.youtube import video_id, wrong_part
from crisscross.data.file_list import ListedClip

SIDES = {"train": r"(?:.*[_-])?train\.csv", "val": r"(?:.*[_-])?val(?:id|idate|idation)?\.csv"}
USUAL = ("annotations", ".", "kinetics400", "lists", "..", "../annotations")
EXACT = {"train": ("train.csv",), "val": ("val.csv", "validate.csv", "validation.csv", "valid.csv")}
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the clips of the dataset's classes.

    The clips of the validation set get the split ``val``. For Kinetics-Sound, files of the other classes of Kinetics400
    are ignored.

    Raises:
        FileNotFoundError: if one of the two lists is missing.
        ValueError: if a list has an unknown class, or a class folder is misspelt.
    """
    kinetics400 = replace(dataset, name="kinetics400", classes=read_classes("kinetics400"))
    rows = list(_rows(kinetics400))
    expected = [clip for clip, _ in rows if clip.label in dataset.classes]
    others = {clip.key for clip, _ in rows if clip.label not in dataset.classes}
    files = dataset.files()
    kinetics400.check_folders(files, {clip.label for clip in expected})
    listed = match(expected, files, video_id, ignore=others)
    starts_s = {clip.key: start_s for clip, start_s in rows}
    return [_checked(row, kinetics400, starts_s) for row in listed if not _of_another(row, dataset, kinetics400)]


def _rows(dataset: DatasetFolder) -> Iterator[tuple[ExpectedClip, float]]:
    paths = dataset.find_lists("|".join(SIDES.values()), USUAL)
    chosen = {}
    for split, pattern in SIDES.items():
        named = [path for path in paths if re.fullmatch(pattern, path.name)]
        if not named:
            raise dataset.lacks(f"{split}.csv", {path.parent for path in paths})
        chosen[split] = dataset.choose_list(named, EXACT[split])
    dataset.used[:] = chosen.values()
    for split, path in chosen.items():
        for where, (label, name, start, end) in table(path, COLUMNS):
            dataset.check_label(label, where)
            try:
                start_s, end_s = float(start), float(end)
            except ValueError:
                raise ValueError(f"{where}: {start!r} to {end!r} are no seconds: give the original list") from None
            file = f"{split}/{label}/{name}_{start_s:06.0f}_{end_s:06.0f}.mp4"
            yield ExpectedClip(name, file, label, split), start_s


def _of_another(row: ListedClip, dataset: DatasetFolder, kinetics400: DatasetFolder) -> bool:
    """Return whether an unlisted file lies in another class's folder."""
    label = kinetics400.class_of(row.path)
    return not row.label and label is not None and label not in dataset.classes


def _checked(row: ListedClip, kinetics400: DatasetFolder, starts_s: dict[str, float]) -> ListedClip:
    """Compare a file's folder and its name's times with the list.

    Returns:
        The row, with the folder's class if it has no label, and with a problem if folder or times differ.
    """
    folder = kinetics400.class_of(row.path)
    if not row.label:
        return replace(row, label=folder or "")
    if row.problem:
        return row
    if folder not in (None, row.label):
        return replace(row, problem=f"lies in the folder of {folder!r}")
    return replace(row, problem=wrong_part(row.path, starts_s))
