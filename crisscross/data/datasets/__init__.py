"""The paper's datasets in the layouts in which they are distributed.

A reader turns the official lists and the files under the root into rows for the manifest. It downloads nothing, and
opens only the lists. Title, layout, folds and splits of each dataset are in ``crisscross/config/datasets.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crisscross.config.datasets import DATASETS
from crisscross.data.datasets import audioset, dcase2013, esc50, hmdb51, kinetics, ucf101
from crisscross.data.datasets.matching import DatasetFolder, check_complete, read_classes
from crisscross.data.file_list import ListedClip

READERS: dict[str, Callable[[DatasetFolder], list[ListedClip]]] = {
    "kinetics400": kinetics.read,
    "kinetics_sound": kinetics.read,
    "audioset": audioset.read,
    "ucf101": ucf101.read,
    "hmdb51": hmdb51.read,
    "esc50": esc50.read,
    "dcase2013": dcase2013.read,
}
"""The reader of each dataset."""

SOURCE_OF: dict[str, Callable[[str], str | None]] = {"ucf101": ucf101.source_of, "hmdb51": hmdb51.source_of}
"""Functions from a clip's path to the video it was cut from, or None for any other name.

For datasets with several clips of one video, which may not be divided between training and validation."""


def list_official(
    name: str, root: Path, annotations: Path | None, *, allow_missing: bool, used: list[Path] | None = None
) -> list[ListedClip]:
    """List the clips of an official dataset.

    Args:
        name: a key of ``DATASETS``.
        root: the folder of its clips.
        annotations: the folder, or the single file, of its official lists; None means under the root.
        allow_missing: whether any number of the listed clips may be missing; they are listed with that problem.
        used: gets the official lists that were read.

    Raises:
        FileNotFoundError: if an official list is missing.
        ValueError: if a list cannot be read, has an unknown class, or too many of its clips are missing.
    """
    known = DATASETS[name]
    if annotations is not None and not annotations.exists():
        raise FileNotFoundError(
            f"data.annotations={annotations}: no such file or folder: give where {known.lists} of {name} are"
        )
    classes = read_classes(name) if known.has_class_list else frozenset()
    dataset = DatasetFolder(name, root, annotations, known.lists, known.layout, classes)
    listed = READERS[name](dataset)
    if used is not None:
        used[:] = dataset.used
    if not allow_missing:
        check_complete(dataset, listed)
    return listed
