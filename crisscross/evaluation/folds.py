"""The folds of a dataset: which clips train and which test."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crisscross.config.data import DataSettings
from crisscross.data.datasets import SOURCE_OF
from crisscross.data.manifest import Manifest

logger = logging.getLogger(__name__)

STREAMS = {"v": ("video_start_s", "video"), "a": ("audio_start_s", "audio")}
"""By stream: the manifest's column that is empty without it, and its name in ``data.require``."""


@dataclass(frozen=True)
class Fold:
    """The training and the test clips of one fold.

    Attributes:
        name: the fold's number; empty for a dataset without folds.
        train: rows of the manifest.
        test: rows of the manifest.
        groups: the official fold in which each training clip is a test clip, for a cross-validation that leaves out one
            fold at a time; None unless each clip is a test clip of exactly one fold.
        sources: the video that each training clip was cut from, for a cross-validation that keeps the clips of a video
            together; None if the file names do not contain it.
    """

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    groups: np.ndarray | None
    sources: np.ndarray | None = None


def folds_of(manifest: Manifest, data: DataSettings) -> list[Fold]:
    """Return the selected folds; one without a name if there are none.

    Raises:
        ValueError: if the manifest lacks a split, or a clip is in both splits of a fold.
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
                " expected none: correct data.train_split, data.test_split or the list of clips"
            )
        _warn_of_unseen(train, test)
        groups = _groups(train, data.test_split) if name else None
        folds.append(Fold(name, train, test, groups, _sources(train, data)))
    return folds


def require_streams(
    fold: Fold, streams: str, *, asked_by: str = "downstream.modalities", remedy: str = "set {other}, or "
) -> None:
    """Check that all clips have the streams that a protocol uses.

    Args:
        fold: the clips to check.
        streams: ``v``, ``a`` or ``av``.
        asked_by: what needs the streams, for the message.
        remedy: an alternative to leaving out such clips, for the message.

    Raises:
        ValueError: if a clip lacks a stream; the message names the first.
    """
    for stream in streams:
        column, name = STREAMS[stream]
        frame = pd.concat([fold.train, fold.test])
        without = frame[frame[column].isna()]
        if len(without):
            other = f"downstream.modalities=[{'a' if stream == 'v' else 'v'}]"
            raise ValueError(
                f"{asked_by} needs {name}, {len(without)} of {len(frame)} clips have none (the first is"
                f" {without['path'].iloc[0]}): {remedy.format(other=other)}leave such clips out with"
                f" data.require=[{name}]"
            )


def _warn_of_unseen(train: pd.DataFrame, test: pd.DataFrame) -> None:
    unseen = sorted(set(test["label"]) - set(train["label"]))
    if unseen:
        logger.warning("no training clips of %s: their test clips count as errors", ", ".join(unseen))


def _groups(train: pd.DataFrame, test_split: str) -> np.ndarray | None:
    """Return each clip's test split; None unless each has exactly one."""
    tests = [[name for name in joined.split("+") if name.startswith(test_split)] for joined in train["split"]]
    return np.array([names[0] for names in tests]) if all(len(names) == 1 for names in tests) else None


def _sources(train: pd.DataFrame, data: DataSettings) -> np.ndarray | None:
    """Return each clip's source video, from the file names; None if unknown."""
    source_of = SOURCE_OF.get(data.kind) or SOURCE_OF.get(data.name)
    if source_of is None:
        return None
    found = [source_of(path) for path in train["path"]]
    unknown = [path for path, source in zip(train["path"], found, strict=True) if source is None]
    if len(unknown) == len(found):
        return None
    if unknown:
        logger.warning(
            "the names of %d of %d training clips do not contain the video that they were cut from (the first is %s):"
            " each counts as a video of its own",
            len(unknown),
            len(found),
            unknown[0],
        )
    return np.array([source or path for path, source in zip(train["path"], found, strict=True)])
