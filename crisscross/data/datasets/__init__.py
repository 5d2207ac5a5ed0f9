"""The datasets that the paper uses, in the layouts in which they are distributed: another way to list clips.

What is known of each before its files are looked at is in crisscross/config/datasets.py; a reader turns the official
lists and the files that are there into rows for the manifest. Nothing is downloaded, and only the lists are opened.
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
"""By dataset: what lists its clips."""

SOURCE_OF: dict[str, Callable[[str], str | None]] = {"ucf101": ucf101.source_of, "hmdb51": hmdb51.source_of}
"""From a clip's path to the name of the video that it was cut from, or None where the name does not tell. For datasets
whose clips have something in common that their folds do not keep together."""


def list_official(name: str, root: Path, annotations: Path | None, *, allow_missing: bool) -> list[ListedClip]:
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
    place = DatasetFolder(name, root, annotations, known.lists, known.layout, classes)
    listed = READERS[name](place)
    if not allow_missing:
        check_complete(place, listed)
    return listed
