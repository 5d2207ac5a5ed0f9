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
    """Return which video a clip was cut from: its class and group, ``v_<Class>_gXX``; None for any other name.

    The official folds keep the clips of a group on one side.
    """
    found = SOURCE.match(file)
    return found[1] if found else None


def read(place: DatasetFolder) -> list[ListedClip]:
    """List the clips of UCF101; each is in one of train and test of each fold.

    Raises:
        FileNotFoundError: one of the six lists is missing.
        ValueError: a list or a class folder names no class of UCF101.
    """
    found = {path.name: path for path in place.find_lists(r"(train|test)list0\d\.txt", USUAL)}
    splits: dict[str, list[str]] = defaultdict(list)
    for fold in FOLDS:
        for side in ("train", "test"):
            name = f"{side}list{fold:02d}.txt"
            if name not in found:
                raise place.lacks(name, {path.parent for path in found.values()})
            for where, line in lines(found[name]):
                path = re.sub(r"\s+\d+$", "", line).replace("\\", "/")  # train lists number the class behind the path
                place.check_label(path.partition("/")[0], where)
                add_side(splits, path, side, fold, where)
    files = place.files()
    wanted = [
        ExpectedClip(folder_and_stem(path), f"UCF-101/{path}", path.partition("/")[0], "+".join(names))
        for path, names in splits.items()
    ]
    place.check_folders(files, {clip.label for clip in wanted})
    return match(wanted, files, folder_and_stem)
