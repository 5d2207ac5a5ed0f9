"""Settings of the clips that an experiment learns from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from crisscross.settings_base import Settings


class DataSettings(Settings):
    """Which clips. Keys that only one kind of source has are optional."""

    name: str
    kind: Literal["toy", "folder"]
    root: str | None
    train_split: str
    test_split: str
    fingerprint: str | None
    folds: tuple[int, ...] = ()
    toy: dict[str, Any] = Field(default_factory=dict)
    csv: str | None = None
    file_column: str = "file"
    label_column: str = "label"
    split_column: str | None = "split"
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    thorough: bool = False
    manifest_root: str = "data/manifests"

    @model_validator(mode="after")
    def _has_source(self) -> DataSettings:
        if self.kind == "folder" and not (self.root or self.csv):
            raise ValueError("data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE")
        return self
