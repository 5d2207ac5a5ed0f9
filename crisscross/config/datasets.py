"""Facts about the paper's datasets.

Titles, layouts, folds, splits and required streams; crisscross/data/datasets reads the official lists.
"""

from __future__ import annotations

from dataclasses import dataclass

VALIDATION_NAMES = ("val", "valid", "validation")
"""Names of a split on which settings are chosen."""

BOTH, VIDEO, AUDIO = ("video", "audio"), ("video",), ("audio",)


@dataclass(frozen=True)
class OfficialDataset:
    """Facts about a dataset that do not depend on its files.

    Attributes:
        title: the name in tables.
        layout: files below the root; for messages.
        lists: names of the official annotation files; for messages.
        require: the streams that each clip must have, by default.
        folds: the numbers of its folds; empty if there is only one split.
        splits: names of the training and the test split, without the number of a fold.
        num_clips: clips that its lists name, over all splits; None if releases of the lists differ.
        has_class_list: whether crisscross/data/datasets/classes/<name>.txt lists its classes.
    """

    title: str
    layout: str
    lists: str
    require: tuple[str, ...]
    folds: tuple[int, ...]
    splits: tuple[str, str]
    num_clips: int | None
    has_class_list: bool


DATASETS = {
    "kinetics400": OfficialDataset(
        title="Kinetics400",
        layout="train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv)",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        num_clips=None,
        has_class_list=True,
    ),
    "kinetics_sound": OfficialDataset(
        title="Kinetics-Sound",
        layout="a Kinetics400 tree: train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv) of Kinetics400",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        num_clips=None,
        has_class_list=True,
    ),
    "audioset": OfficialDataset(
        title="AudioSet",
        layout="<id>_<start>_<end>.mp4 or <id>.mp4, in folders or not",
        lists="(un)balanced_train_segments.csv, eval_segments.csv and class_labels_indices.csv",
        require=BOTH,
        folds=(),
        splits=("train", "eval"),
        num_clips=None,
        has_class_list=False,
    ),
    "ucf101": OfficialDataset(
        title="UCF101",
        layout="UCF-101/<Class>/v_<Class>_gXX_cYY.avi",
        lists="trainlist01.txt to trainlist03.txt and testlist01.txt to testlist03.txt",
        require=VIDEO,
        folds=(1, 2, 3),
        splits=("train", "test"),
        num_clips=13320,
        has_class_list=True,
    ),
    "hmdb51": OfficialDataset(
        title="HMDB51",
        layout="<class>/<name>.avi",
        lists="<class>_test_split1.txt to <class>_test_split3.txt",
        require=VIDEO,
        folds=(1, 2, 3),
        splits=("train", "test"),
        num_clips=6766,
        has_class_list=True,
    ),
    "esc50": OfficialDataset(
        title="ESC-50",
        layout="audio/<fold>-<source>-<take>-<target>.wav",
        lists="esc50.csv",
        require=AUDIO,
        folds=(1, 2, 3, 4, 5),
        splits=("train", "test"),
        num_clips=2000,
        has_class_list=True,
    ),
    "dcase2013": OfficialDataset(
        title="DCASE 2013 scenes",
        layout="scenes_stereo/<class>NN.wav and scenes_stereo_testset/<class>NN.wav",
        lists="meta*.txt (lines <folder>/<file><tab><class>), needed only for copies with other files",
        require=AUDIO,
        folds=(),
        splits=("train", "test"),
        num_clips=200,
        has_class_list=True,
    ),
}
"""By ``data.kind``."""
