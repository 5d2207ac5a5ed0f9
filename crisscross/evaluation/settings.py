"""Settings of the protocols that evaluate a backbone, one class a protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crisscross.settings_base import Settings


class SvmSettings(Settings):
    """The linear SVM on frozen features (crisscross/evaluation/svm.py)."""

    name: Literal["svm"]
    modalities: tuple[Literal["v", "a", "av"], ...] = Field(min_length=1)
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    num_folds: int = Field(ge=2)
