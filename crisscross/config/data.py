"""Settings of the clips that an experiment learns from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from crisscross.config.base import Settings
from crisscross.config.datasets import DATASETS

RELAXATION_NAMES = ("none", "mild", "medium", "mixed", "extreme", "video_extreme", "audio_extreme")
"""How far apart the two views of a clip may start (crisscross/data/relaxation.py)."""


class DataSettings(Settings):
    """Which clips. Keys that only one kind of source has are optional."""

    name: str
    kind: Literal["toy", "folder", *DATASETS]  # type: ignore[valid-type]  # pydantic reads it at run time
    root: str | None
    train_split: str
    test_split: str
    fingerprint: str | None
    folds: tuple[int, ...] = ()
    require: tuple[Literal["video", "audio"], ...] = Field(default=("video", "audio"), min_length=1)
    toy: dict[str, Any] = Field(default_factory=dict)
    annotations: str | None = None
    allow_missing: bool = False
    csv: str | None = None
    file_column: str = "file"
    label_column: str = "label"
    split_column: str | None = "split"
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    thorough: bool = False
    manifest_root: str = "data/manifests"
    stage: str | None = "off"
    shards: str | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> DataSettings:
        if self.kind == "folder" and not (self.root or self.csv):
            raise ValueError("data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE")
        if len(set(self.folds)) < len(self.folds):
            raise ValueError(f"data.folds={[*self.folds]} names a fold twice: name each once")
        if self.is_official:
            self._check_official()
        if self.stage not in (None, "off", "auto") and self.stage[:1] not in ("/", "~", "$"):
            raise ValueError(
                f"data.stage={self.stage}: expected off, auto ($SLURM_TMPDIR where there is one) or an absolute folder"
                " on the node's own disk, which may begin with a variable"
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
        """Make sure that one split of clips with what the method learns from is meant.

        Args:
            modalities: ``v``, ``a`` or ``av``.

        Raises:
            ValueError: it is not.
        """
        needed = [stream for stream in ("video", "audio") if stream[0] in modalities]
        if not set(needed) <= set(self.require):
            what = " and ".join({"video": "pictures", "audio": "sound"}[stream] for stream in needed)
            raise ValueError(
                f"data.require=[{','.join(self.require)}]: this pretraining learns from {what}: set"
                f" data.require=[{','.join(needed)}]; clips without are then rejected"
            )
        if self.is_official and self.folds:
            raise ValueError(
                f"data.folds={[*self.folds]}: pretraining takes one split: set data.folds=[]"
                f" data.train_split={self.splits[0]} data.test_split={self.splits[1]}"
            )

    @property
    def is_official(self) -> bool:
        """Whether the clips are those of official lists (crisscross/data/official)."""
        return self.kind in DATASETS

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that an evaluation uses: training and test, of each fold where there are folds."""
        pairs = [(self.train_split, self.test_split)]
        if self.folds:
            pairs = [(f"{self.train_split}{fold}", f"{self.test_split}{fold}") for fold in self.folds]
        return tuple(name for pair in pairs for name in pair)
