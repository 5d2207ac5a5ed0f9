"""HMDB51: ``<class>/<name>.avi``, with one list ``<class>_test_splitN.txt`` per class and fold.

A line is a file name and 1 (train), 2 (test) or 0 (unused in this fold). A name is
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
    """Return the video and class of a clip, ``<video>_<class>``.

    Return None for any other name.

    In all three official folds, the clips of one video and class are on one side. Clips of one film in different
    classes may be on both.
    """
    found = SOURCE.match(file)
    return found[1] if found else None


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the clips of HMDB51.

    A clip that no fold uses has a problem.

    Raises:
        FileNotFoundError: if a class lacks a list.
        ValueError: if a list or folder is named after an unknown class, or a line cannot be read.
    """
    found = {path.name: path for path in dataset.find_lists(LIST, USUAL)}
    files = dataset.files()
    labels = [dataset.check_label(name.rpartition("_test_split")[0], str(path)) for name, path in found.items()]
    dataset.check_folders(files, labels)
    expected = []
    for label in sorted({*labels, *filter(None, map(dataset.class_of, files))}):  # also classes without a list
        splits: dict[str, list[str]] = defaultdict(list)
        for fold in FOLDS:
            name = f"{label}_test_split{fold}.txt"
            if name not in found:
                raise dataset.lacks(name, {path.parent for path in found.values()})
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
            expected.append(ExpectedClip(folder_and_stem(path), path, label, "+".join(names), problem))
    return match(expected, files, folder_and_stem)
