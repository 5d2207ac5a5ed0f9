"""Settings of the dataset: the config's ``data`` node."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from crisscross.config.base import Settings
from crisscross.config.datasets import DATASETS

RELAXATION_NAMES = ("none", "mild", "medium", "mixed", "extreme", "video_extreme", "audio_extreme")
"""How far apart the two views of a clip start (crisscross/data/relaxation.py)."""


class DataSettings(Settings):
    """The dataset; keys that only some kinds of it use are optional."""

    name: str  # the dataset's name in tables and run labels
    # toy: generated clips; folder: your own; otherwise one of the paper's datasets
    kind: Literal["toy", "folder", *DATASETS]  # type: ignore[valid-type]  # pydantic reads it at run time
    root: str | None  # folder of the clips; null with a csv = the csv's folder
    train_split: str  # name of the training split, without the number of a fold
    test_split: str  # name of the test split, without the number of a fold
    fingerprint: str | None  # SHA-256 of the clip list; filled in when an experiment is created
    folds: tuple[int, ...] = ()  # numbers of the folds to evaluate; empty = one split without folds
    # streams that each clip must have; clips without are rejected
    require: tuple[Literal["video", "audio"], ...] = Field(default=("video", "audio"), min_length=1)
    toy: dict[str, Any] = Field(default_factory=dict)  # kind toy: what is generated (crisscross/data/synthetic/spec.py)
    annotations: str | None = None  # official datasets: folder or file of their lists; null = below root
    allow_missing: bool = False  # official datasets: accept more than 5 % missing clips, or a missing class
    csv: str | None = None  # kind folder: table of the clips; null = root is a tree <split>/<class>/<file>
    file_column: str = "file"  # csv: column of the file paths
    label_column: str = "label"  # csv: column of the class names
    split_column: str | None = "split"  # csv: column of the split names; null = split by the hash of the path
    test_fraction: float = Field(default=0.3, gt=0, lt=1)  # ours: fraction of each class that a split by hash holds out
    val_fraction: float = Field(default=0.0, ge=0, lt=1)  # fraction that becomes the split val
    thorough: bool = False  # decode each file whole when it is probed, not only its start, middle and end
    manifest_root: str = "data/manifests"  # folder of the manifests (crisscross/data/manifest.py)
    stage: str | None = "off"  # off, auto or a folder: copy clips to node-local disk first (crisscross/data/staging.py)
    cache: str | None = "off"  # off, auto or a folder: keep decoded clips (crisscross/data/decoded_cache.py)
    shards: str | None = None  # folder of tar files to stage from; null = root/shards, if there is one

    @model_validator(mode="after")
    def _is_possible(self) -> DataSettings:
        if self.kind == "folder" and not (self.root or self.csv):
            raise ValueError("data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE")
        if len(set(self.folds)) < len(self.folds):
            raise ValueError(f"data.folds={[*self.folds]} names a fold twice: name each once")
        if self.test_fraction + self.val_fraction >= 1:
            raise ValueError(
                f"data.test_fraction={self.test_fraction:g} and data.val_fraction={self.val_fraction:g} leave no clips"
                " to train on: lower one of them"
            )
        if self.is_official:
            self._check_official()
        for key, folder in (("stage", self.stage), ("cache", self.cache)):
            if folder not in (None, "off", "auto") and folder[:1] not in ("/", "~", "$"):
                raise ValueError(
                    f"data.{key}={folder}: expected off, auto ($SLURM_TMPDIR where there is one) or an absolute folder"
                    " on the node's own disk: set one of these; a folder may begin with a variable"
                )
        return self

    def _check_official(self) -> None:
        known = DATASETS[self.kind]
        if not self.root:
            raise ValueError(f"data.root is not set: {self.name} expects {known.layout}; set data.root=DIR")
        if self.csv:
            raise ValueError(f"data.csv={self.csv}: {self.name} has official lists, data.annotations; leave it out")
        wrong = [fold for fold in self.folds if fold not in known.folds]
        if wrong:
            there = f"folds {', '.join(map(str, known.folds))}" if known.folds else "no folds: set data.folds=[]"
            raise ValueError(f"data.folds={[*self.folds]}: {self.name} has no fold {wrong[0]}; it has {there}")

    def check_for_pretraining(self, modalities: str = "av") -> None:
        """Check that the data suit a pretraining.

        Args:
            modalities: what the method learns from: ``v``, ``a`` or ``av``.

        Raises:
            ValueError: if a stream that the method needs is not required of each clip, or several folds are set.
        """
        needed = [stream for stream in ("video", "audio") if stream[0] in modalities]
        if not set(needed) <= set(self.require):
            raise ValueError(
                f"data.require=[{','.join(self.require)}]: this pretraining learns from {' and '.join(needed)}: set"
                f" data.require=[{','.join(needed)}] (clips without are then rejected)"
            )
        if self.is_official and self.folds:
            raise ValueError(
                f"data.folds={[*self.folds]}: pretraining takes one split: set data.folds=[]"
                f" data.train_split={self.splits[0]} data.test_split={self.splits[1]}"
            )

    @property
    def is_official(self) -> bool:
        """Whether the dataset is one of the paper's, with official lists (crisscross/data/datasets)."""
        return self.kind in DATASETS

    @property
    def splits(self) -> tuple[str, ...]:
        """Training and test split of an evaluation, for each fold."""
        pairs = [(self.train_split, self.test_split)]
        if self.folds:
            pairs = [(f"{self.train_split}{fold}", f"{self.test_split}{fold}") for fold in self.folds]
        return tuple(name for pair in pairs for name in pair)
