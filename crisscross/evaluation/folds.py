"""The folds of a dataset as an evaluation sees them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crisscross.config.data import DataSettings
from crisscross.data.datasets import SOURCE_OF
from crisscross.data.manifest import Manifest

logger = logging.getLogger(__name__)

EXTENTS = {"v": ("video_start_s", "pictures", "video"), "a": ("audio_start_s", "sound", "audio")}


@dataclass(frozen=True)
class Fold:
    """Which clips train, which test.

    Attributes:
        name: the fold's number; empty for a dataset without folds.
        train: rows of the manifest.
        test: rows of the manifest.
        groups: the official fold that each training clip is the test of, where every one is the test of just one: a
            cross-validation leaves out one of these at a time. None otherwise.
        sources: the video that each training clip was cut from, where the dataset says so: a cross-validation must keep
            its clips together. None otherwise.
    """

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    groups: np.ndarray | None
    sources: np.ndarray | None = None


def folds_of(manifest: Manifest, data: DataSettings) -> list[Fold]:
    """Return the folds that the settings choose; one without a name where there are none.

    Raises:
        ValueError: when the manifest has no such split.
    """
    names = [str(fold) for fold in data.folds] or [""]
    folds = []
    for name in names:
        train, test = (manifest.split(f"{split}{name}") for split in (data.train_split, data.test_split))
        both = np.intersect1d(train["clip_id"], test["clip_id"])
        if len(both):
            first = manifest.clips.set_index("clip_id").loc[both[0], "path"]
            raise ValueError(
                f"{len(both)} clips are in the training and in the test split (the first is {first}):"
                " data.train_split and data.test_split must have none in common"
            )
        _note_unseen(manifest, train, test)
        groups = _groups(train, data.test_split) if name else None
        folds.append(Fold(name, train, test, groups, _sources(train, data)))
    return folds


def require_streams(
    fold: Fold, streams: str, *, asked_by: str = "downstream.modalities", remedy: str = "set {other}, or "
) -> None:
    """Make sure that all clips have what a protocol listens to and looks at.

    Args:
        fold: whose clips.
        streams: ``v``, ``a`` or ``av``.
        asked_by: what needs them, for the message.
        remedy: what may be done beside leaving such clips out, for the message.

    Raises:
        ValueError: when a clip lacks it, naming the first.
    """
    for stream in streams:
        column, what, key = EXTENTS[stream]
        frame = pd.concat([fold.train, fold.test])
        without = frame[frame[column].isna()]
        if len(without):
            other = f"downstream.modalities=[{'a' if stream == 'v' else 'v'}]"
            raise ValueError(
                f"{asked_by} needs {what}, {len(without)} of {len(frame)} clips have none (the first is"
                f" {without['path'].iloc[0]}): {remedy.format(other=other)}leave such clips out with"
                f" data.require=[{key}]"
            )


def _note_unseen(manifest: Manifest, train: pd.DataFrame, test: pd.DataFrame) -> None:
    unseen = sorted(set(test["label"]) - set(train["label"]))
    if unseen:
        logger.warning("no training clips of %s: their test clips count as errors", ", ".join(unseen))


def _groups(train: pd.DataFrame, test_split: str) -> np.ndarray | None:
    """Return the test split of each clip, where each has just one."""
    tests = [[name for name in joined.split("+") if name.startswith(test_split)] for joined in train["split"]]
    return np.array([names[0] for names in tests]) if all(len(names) == 1 for names in tests) else None


def _sources(train: pd.DataFrame, data: DataSettings) -> np.ndarray | None:
    """Return the video that each clip was cut from, by its name: of an official dataset, or of a copy so named."""
    source_of = SOURCE_OF.get(data.kind) or SOURCE_OF.get(data.name)
    if source_of is None:
        return None
    found = [source_of(path) for path in train["path"]]
    unknown = [path for path, source in zip(train["path"], found, strict=True) if source is None]
    if len(unknown) == len(found):
        return None
    if unknown:
        logger.warning(
            "the names of %d of %d training clips do not say which video they were cut from (the first is %s): each"
            " counts as a video of its own",
            len(unknown),
            len(found),
            unknown[0],
        )
    return np.array([source or path for path, source in zip(train["path"], found, strict=True)])
