"""UCF101: ``UCF-101/<Class>/v_<Class>_gXX_cYY.avi``; ``trainlist0N.txt`` and ``testlist0N.txt`` for three folds."""

from __future__ import annotations

import re
from collections import defaultdict

from crisscross.config.datasets import DATASETS
from crisscross.data.datasets.matching import DatasetFolder, ExpectedClip, add_side, folder_and_stem, lines, match
from crisscross.data.file_list import ListedClip

FOLDS = DATASETS["ucf101"].folds
SOURCE = re.compile(r"(?:.*/)?(v_.+_g\d+)_c\d+")
USUAL = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", ".", "../ucfTrainTestlist")


def source_of(file: str) -> str | None:
    """Return the class and group of a clip, ``v_<Class>_gXX``.

    Return None for any other name.

    A group is cut from one video. In the official folds, its clips are on one side.
    """
    found = SOURCE.match(file)
    return found[1] if found else None


def read(dataset: DatasetFolder) -> list[ListedClip]:
    """List the clips of UCF101.

    In each fold, a clip is in train or test.

    Raises:
        FileNotFoundError: if one of the six lists is missing.
        ValueError: if a list has an unknown class, or a class folder is misspelt.
    """
    found = {path.name: path for path in dataset.find_lists(r"(train|test)list0\d\.txt", USUAL)}
    splits: dict[str, list[str]] = defaultdict(list)
    for fold in FOLDS:
        for side in ("train", "test"):
            name = f"{side}list{fold:02d}.txt"
            if name not in found:
                raise dataset.lacks(name, {path.parent for path in found.values()})
            for where, line in lines(found[name]):
                path = re.sub(r"\s+\d+$", "", line).replace("\\", "/")  # train lists append the number of the class
                dataset.check_label(path.partition("/")[0], where)
                add_side(splits, path, side, fold, where)
    files = dataset.files()
    expected = [
        ExpectedClip(folder_and_stem(path), f"UCF-101/{path}", path.partition("/")[0], "+".join(names))
        for path, names in splits.items()
    ]
    dataset.check_folders(files, {clip.label for clip in expected})
    return match(expected, files, folder_and_stem)
