"""The datasets that the paper uses: their titles, layouts, folds, splits and required streams.

Plain facts; what reads their official lists is in crisscross/data/datasets.
"""

from __future__ import annotations

from dataclasses import dataclass

BOTH, VIDEO, AUDIO = ("video", "audio"), ("video",), ("audio",)


@dataclass(frozen=True)
class Official:
    """What is known about a dataset before its files are looked at.

    Attributes:
        title: as the tables call it.
        layout: what the root holds.
        lists: the official annotation files.
        require: the streams that each clip must have.
        folds: the numbers of its folds; empty where there is one split alone.
        splits: the names of the training and the test split, before a fold's number.
        has_class_list: whether ``classes/<name>.txt`` holds its classes.
    """

    title: str
    layout: str
    lists: str
    require: tuple[str, ...]
    folds: tuple[int, ...]
    splits: tuple[str, str]
    has_class_list: bool


DATASETS = {
    "kinetics400": Official(
        title="Kinetics400",
        layout="train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv)",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        has_class_list=True,
    ),
    "kinetics_sound": Official(
        title="Kinetics-Sound",
        layout="a Kinetics400 tree: train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv) of Kinetics400",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        has_class_list=True,
    ),
    "audioset": Official(
        title="AudioSet",
        layout="<id>_<start>_<end>.mp4 or <id>.mp4, in folders or not",
        lists="(un)balanced_train_segments.csv, eval_segments.csv and class_labels_indices.csv",
        require=BOTH,
        folds=(),
        splits=("train", "eval"),
        has_class_list=False,
    ),
    "ucf101": Official(
        title="UCF101",
        layout="UCF-101/<Class>/v_<Class>_gXX_cYY.avi",
        lists="trainlist01.txt to trainlist03.txt and testlist01.txt to testlist03.txt",
        require=VIDEO,
        folds=(1, 2, 3),
        splits=("train", "test"),
        has_class_list=True,
    ),
    "hmdb51": Official(
        title="HMDB51",
        layout="<class>/<name>.avi",
        lists="<class>_test_split1.txt to <class>_test_split3.txt",
        require=VIDEO,
        folds=(1, 2, 3),
        splits=("train", "test"),
        has_class_list=True,
    ),
    "esc50": Official(
        title="ESC-50",
        layout="audio/<fold>-<source>-<take>-<target>.wav",
        lists="esc50.csv",
        require=AUDIO,
        folds=(1, 2, 3, 4, 5),
        splits=("train", "test"),
        has_class_list=True,
    ),
    "dcase2013": Official(
        title="DCASE 2013 scenes",
        layout="scenes_stereo/<class>NN.wav and scenes_stereo_testset/<class>NN.wav",
        lists="meta*.txt (lines <folder>/<file><tab><class>), needed for copies with other files alone",
        require=AUDIO,
        folds=(),
        splits=("train", "test"),
        has_class_list=True,
    ),
}
