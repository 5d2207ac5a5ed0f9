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
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(place: DatasetFolder) -> list[ListedClip]:
    """List the clips of the place's classes, the validation set as split ``val``.

    For Kinetics-Sound, files of other classes of Kinetics400 are left alone: they are no part of it.

    Raises:
        FileNotFoundError: one of the two lists is missing.
        ValueError: a list names no class of Kinetics400, or a class folder is misspelt.
    """
    everything = replace(place, dataset="kinetics400", classes=read_classes("kinetics400"))
    rows = list(_rows(everything))
    wanted = [clip for clip, _ in rows if clip.label in place.classes]
    others = {clip.key for clip, _ in rows if clip.label not in place.classes}
    files = place.files()
    everything.check_folders(files, {clip.label for clip in wanted})
    listed = match(wanted, files, video_id, ignore=others)
    starts_s = {clip.key: start_s for clip, start_s in rows}
    return [_checked(row, everything, starts_s) for row in listed if not _of_another(row, place, everything)]


def _rows(place: DatasetFolder) -> Iterator[tuple[ExpectedClip, float]]:
    paths = place.find_lists("|".join(SIDES.values()), USUAL)
    for split, pattern in SIDES.items():
        named = [path for path in paths if re.fullmatch(pattern, path.name)]
        if not named:
            raise place.lacks(f"{split}.csv", {path.parent for path in paths})
        for where, (label, name, start, end) in table(named[0], COLUMNS):
            place.check_label(label, where)
            try:
                start_s, end_s = float(start), float(end)
            except ValueError:
                raise ValueError(f"{where}: {start!r} to {end!r} are no seconds: give the original list") from None
            path = f"{split}/{label}/{name}_{start_s:06.0f}_{end_s:06.0f}.mp4"
            yield ExpectedClip(name, path, label, split), start_s


def _of_another(row: ListedClip, place: DatasetFolder, everything: DatasetFolder) -> bool:
    """Whether a file that no list names lies in the folder of a class that is not asked for."""
    label = everything.class_of(row.path)
    return not row.label and label is not None and label not in place.classes


def _checked(row: ListedClip, everything: DatasetFolder, starts_s: dict[str, float]) -> ListedClip:
    """Compare the folder and the times in a file's name with the list."""
    folder = everything.class_of(row.path)
    if not row.label:
        return replace(row, label=folder or "")
    if row.problem:
        return row
    if folder not in (None, row.label):
        return replace(row, problem=f"lies in the folder of {folder!r}")
    return replace(row, problem=wrong_part(row.path, starts_s))
