"""Settings of the protocols that evaluate a backbone, one class a protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crisscross.settings_base import Rate, Settings
from crisscross.training.settings import OptimSettings, TrainingSettings


class SvmSettings(Settings):
    """The linear SVM on frozen features (crisscross/evaluation/svm.py)."""

    name: Literal["svm"]
    modalities: tuple[Literal["v", "a", "av"], ...] = Field(min_length=1)
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    num_folds: int = Field(ge=2)


class ClassifierSettings(Settings):
    """The head of fine-tuning (crisscross/models/heads.py) and the pooling before it."""

    pool: Literal["max", "avg"]
    hidden_dim: int | None = Field(gt=0)
    batch_norm: bool
    dropout: Rate


class FinetuneSettings(Settings):
    """Fine-tuning of the video network (crisscross/evaluation/finetune.py), completed by the table."""

    name: Literal["finetune"]
    frames: int = Field(gt=0)
    pretrained_on: str
    head: ClassifierSettings
    freeze_backbone_epochs: int = Field(ge=0)
    optim: OptimSettings
    training: TrainingSettings
