"""DCASE 2013 scenes: ``scenes_stereo/<class>NN.wav`` (development) and ``scenes_stereo_testset/<class>NN.wav``.

The two archives come without lists: a file's name is its label, and each class has ten recordings on either side. The
numbers are not consecutive in every copy, so without a list a class is complete when it has ten files. Lists in the
challenge's own form, ``meta*.txt`` with lines ``<folder>/<file><tab><class>``, say which files there are instead.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from crisscross.data.datasets.matching import MISSING, DatasetFolder, ExpectedClip, folder_and_stem, lines, match
from crisscross.data.file_list import ListedClip

SIDES = {"scenes_stereo": "train", "scenes_stereo_testset": "test"}
NUM_RECORDINGS = 10  # of a class, on either side
NAME = re.compile(r"([a-z]+?)_?(\d+)")


def read(place: DatasetFolder) -> list[ListedClip]:
    """List the recordings: development set = train, evaluation set = test.

    Raises:
        FileNotFoundError: ``data.annotations`` holds no list.
        ValueError: a list names no class, or a folder is neither of the two.
    """
    files = place.files()
    wanted = list(_from_lists(place)) or list(_from_names(place, files))
    return match(wanted, files, folder_and_stem)


def _from_lists(place: DatasetFolder) -> list[ExpectedClip]:
    try:
        paths = place.find_lists(r"meta.*\.txt", (".",), single=True)
    except FileNotFoundError:
        if place.annotations is not None:
            raise
        return []
    wanted = []
    for path in paths:
        for where, line in lines(path):
            file, _, label = (cell.strip() for cell in line.partition("\t"))
            side = SIDES.get(PurePosixPath(file).parent.name)
            if side is None:
                raise ValueError(f"{where}: {file!r} is in neither {' nor '.join(SIDES)}: name the folder of each file")
            wanted.append(ExpectedClip(folder_and_stem(file), file, place.check_label(label, where), side))
    return wanted


def _from_names(place: DatasetFolder, files: list[str]) -> list[ExpectedClip]:
    """Take what is there as the list, and as many more as each class lacks to its ten."""
    wanted: list[ExpectedClip] = []
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        found, folder = NAME.fullmatch(PurePosixPath(file).stem), PurePosixPath(file).parent.name
        if found and folder in SIDES:
            label = place.check_label(found[1], f"data.root={place.root}, {file}")
            if (key := folder_and_stem(file)) not in {clip.key for clip in wanted}:
                counts[folder, label] += 1
                wanted.append(ExpectedClip(key, file, label, SIDES[folder]))
    for folder, side in SIDES.items():
        for label in sorted(place.classes):
            for number in range(counts[folder, label] + 1, NUM_RECORDINGS + 1):
                key = f"{folder}/{label} (recording {number} of {NUM_RECORDINGS})"
                wanted.append(ExpectedClip(key, key, label, side, MISSING))
    return wanted
