"""HMDB51: ``<class>/<name>.avi``, with a list ``<class>_test_splitN.txt`` a class and fold.

A line is a file name and 1 (train), 2 (test) or 0 (in neither side of this fold). A name is
``<video>_<class>_<visible parts>_<camera motion>_np<people>_<view>_<quality>_<number>``.
"""

from __future__ import annotations

import re
from collections import defaultdict

from crisscross.config.datasets import DATASETS
from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, add_side, folder_and_stem, lines, match
from crisscross.data.file_list import ListedClip

FOLDS = DATASETS["hmdb51"].folds
SIDES = {"0": None, "1": "train", "2": "test"}
SOURCE = re.compile(r"(?:.*/)?(.+)_[fuhl]_(?:nm|cm)_np\d+_(?:fr|ri|le|ba)_(?:goo|med|bad)_\d+")
LIST = r".+_test_split[123]\.txt"

USUAL = (
    "testTrainMulti_7030_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "test_train_splits",
    "splits",
    ".",
    "../testTrainMulti_7030_splits",
)


def source_of(file: str) -> str | None:
    """Return which video, and which class, a clip was cut from: ``<video>_<class>``; None for any other name.

    The official folds keep the clips of a video on one side, class by class (true of all three; clips of a film may be
    on both sides in different classes).
    """
    found = SOURCE.match(file)
    return found[1] if found else None


def read(place: DatasetFolder) -> list[ListedClip]:
    """List the clips of HMDB51. Those that no fold uses are listed with that as their problem.

    Raises:
        FileNotFoundError: a class lacks a list.
        ValueError: a list or a class folder names no class of HMDB51, or a line cannot be read.
    """
    found = {path.name: path for path in place.find_lists(LIST, USUAL)}
    files = place.files()
    labels = [place.check_label(name.rpartition("_test_split")[0], str(path)) for name, path in found.items()]
    place.check_folders(files, labels)
    wanted = []
    for label in sorted({*labels, *filter(None, map(place.class_of, files))}):  # whose lists may be missing
        splits: dict[str, list[str]] = defaultdict(list)
        for fold in FOLDS:
            name = f"{label}_test_split{fold}.txt"
            if name not in found:
                raise place.lacks(name, {path.parent for path in found.values()})
            for where, line in lines(found[name]):
                file, _, code = line.rpartition(" ")
                if code not in SIDES:
                    raise ValueError(f"{where}: {line!r} does not end in 0, 1 or 2: give the original list")
                if side := SIDES[code]:
                    add_side(splits, file.strip(), side, fold, where)
                else:
                    splits[file.strip()] += []
        for file, names in splits.items():
            path = f"{label}/{file}"
            problem = "" if names else "used by no fold"
            wanted.append(ExpectedClip(folder_and_stem(path), path, label, "+".join(names), problem))
    return match(wanted, files, folder_and_stem)
