"""DCASE 2013 scenes: ``scenes_stereo/<class>NN.wav`` (development) and ``scenes_stereo_testset/<class>NN.wav``.

The two archives have no lists: a file's name is its label, and each class has ten recordings per set. The numbers are
not consecutive in every copy, so without a list a class is complete if it has ten files. Lists in the challenge's
format, ``meta*.txt`` with lines ``<folder>/<file><tab><class>``, take precedence.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from crisscross.data.datasets.matching import MISSING, DatasetFolder, ExpectedClip, folder_and_stem, lines, match
from crisscross.data.file_list import ListedClip

SIDES = {"scenes_stereo": "train", "scenes_stereo_testset": "test"}
NUM_RECORDINGS = 10  # per class and set
NAME = re.compile(r"([a-z]+?)_?(\d+)")


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the recordings: development set = train, evaluation set = test.

    Raises:
        FileNotFoundError: if ``data.annotations`` is set and holds no list.
        ValueError: if a class is unknown, or a folder is neither of the two.
    """
    files = dataset.files()
    expected = list(_from_lists(dataset)) or list(_from_names(dataset, files))
    return match(expected, files, folder_and_stem)


def _from_lists(dataset: DatasetFolder) -> list[ExpectedClip]:
    try:
        paths = dataset.find_lists(r"meta.*\.txt", (".",), single=True)
    except FileNotFoundError:
        if dataset.annotations is not None:
            raise
        return []
    expected = []
    for path in paths:
        for where, line in lines(path):
            file, _, label = (cell.strip() for cell in line.partition("\t"))
            side = SIDES.get(PurePosixPath(file).parent.name)
            if side is None:
                raise ValueError(f"{where}: {file!r} is in neither {' nor '.join(SIDES)}: name the folder of each file")
            expected.append(ExpectedClip(folder_and_stem(file), file, dataset.check_label(label, where), side))
    return expected


def _from_names(dataset: DatasetFolder, files: list[str]) -> list[ExpectedClip]:
    """Take the files as the list.

    Add a missing clip for each that a class lacks of its ten.
    """
    expected: list[ExpectedClip] = []
    counts: Counter[tuple[str, str]] = Counter()
    for file in files:
        found, folder = NAME.fullmatch(PurePosixPath(file).stem), PurePosixPath(file).parent.name
        if found and folder in SIDES:
            label = dataset.check_label(found[1], f"data.root={dataset.root}, {file}")
            if (key := folder_and_stem(file)) not in {clip.key for clip in expected}:
                counts[folder, label] += 1
                expected.append(ExpectedClip(key, file, label, SIDES[folder]))
    for folder, side in SIDES.items():
        for label in sorted(dataset.classes):
            for number in range(counts[folder, label] + 1, NUM_RECORDINGS + 1):
                key = f"{folder}/{label} (recording {number} of {NUM_RECORDINGS})"
                expected.append(ExpectedClip(key, key, label, side, MISSING))
    return expected
