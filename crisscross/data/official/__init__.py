"""The datasets that the paper uses, in the layouts in which they are distributed: another way to list clips.

``DATASETS`` is the one list of them; a reader turns the official lists and the files that are there into rows for the
manifest. Nothing is downloaded here and no file is opened but the lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crisscross.data.listing import Listed
from crisscross.data.official import audioset, dcase2013, esc50, hmdb51, kinetics, ucf101
from crisscross.data.official.place import Place, check_complete, read_classes

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
        read: lists the clips.
        source_of: from a clip's path to the name of the video that it was cut from, or None where the name does not
            tell; None for datasets whose clips have nothing in common, or whose folds keep together what has.
    """

    title: str
    layout: str
    lists: str
    require: tuple[str, ...]
    folds: tuple[int, ...]
    splits: tuple[str, str]
    has_class_list: bool
    read: Callable[[Place], list[Listed]]
    source_of: Callable[[str], str | None] | None = None


DATASETS = {
    "kinetics400": Official(
        title="Kinetics400",
        layout="train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv)",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        has_class_list=True,
        read=kinetics.read,
    ),
    "kinetics_sound": Official(
        title="Kinetics-Sound",
        layout="a Kinetics400 tree: train/<class>/<id>_000010_000020.mp4 and val/..., class folders or not",
        lists="train.csv and val.csv (or validate.csv) of Kinetics400",
        require=BOTH,
        folds=(),
        splits=("train", "val"),
        has_class_list=True,
        read=kinetics.read,
    ),
    "audioset": Official(
        title="AudioSet",
        layout="<id>_<start>_<end>.mp4 or <id>.mp4, in folders or not",
        lists="(un)balanced_train_segments.csv, eval_segments.csv and class_labels_indices.csv",
        require=BOTH,
        folds=(),
        splits=("train", "eval"),
        has_class_list=False,
        read=audioset.read,
    ),
    "ucf101": Official(
        title="UCF101",
        layout="UCF-101/<Class>/v_<Class>_gXX_cYY.avi",
        lists="trainlist01.txt to trainlist03.txt and testlist01.txt to testlist03.txt",
        require=VIDEO,
        folds=ucf101.FOLDS,
        splits=("train", "test"),
        has_class_list=True,
        read=ucf101.read,
        source_of=ucf101.source_of,
    ),
    "hmdb51": Official(
        title="HMDB51",
        layout="<class>/<name>.avi",
        lists="<class>_test_split1.txt to <class>_test_split3.txt",
        require=VIDEO,
        folds=hmdb51.FOLDS,
        splits=("train", "test"),
        has_class_list=True,
        read=hmdb51.read,
        source_of=hmdb51.source_of,
    ),
    "esc50": Official(
        title="ESC-50",
        layout="audio/<fold>-<source>-<take>-<target>.wav",
        lists="esc50.csv",
        require=AUDIO,
        folds=esc50.FOLDS,
        splits=("train", "test"),
        has_class_list=True,
        read=esc50.read,
    ),
    "dcase2013": Official(
        title="DCASE 2013 scenes",
        layout="scenes_stereo/<class>NN.wav and scenes_stereo_testset/<class>NN.wav",
        lists="meta*.txt (lines <folder>/<file><tab><class>), needed for copies with other files alone",
        require=AUDIO,
        folds=(),
        splits=("train", "test"),
        has_class_list=True,
        read=dcase2013.read,
    ),
}


def list_official(name: str, root: Path, annotations: Path | None, *, allow_missing: bool) -> list[Listed]:
    """List the clips of an official dataset.

    Args:
        name: a key of ``DATASETS``.
        root: the folder of its clips.
        annotations: the folder, or the one file, of its official lists; None means that they are under the root.
        allow_missing: whether clips that the lists name may be missing, however many; they are listed as missing.

    Raises:
        FileNotFoundError: an official list is missing.
        ValueError: a list cannot be read, names what it should not, or too much of it is missing.
    """
    known = DATASETS[name]
    if annotations is not None and not annotations.exists():
        raise FileNotFoundError(
            f"data.annotations={annotations}: no such file or folder: give where {known.lists} of {name} are"
        )
    classes = read_classes(name) if known.has_class_list else frozenset()
    place = Place(name, root, annotations, known.lists, known.layout, classes)
    listed = known.read(place)
    if not allow_missing:
        check_complete(place, listed)
    return listed
