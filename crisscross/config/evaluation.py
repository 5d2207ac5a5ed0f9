"""Settings of the protocols that evaluate a backbone, one class a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from crisscross.config.base import Rate, Settings
from crisscross.config.finetune_recipes import fill_in
from crisscross.config.optim import OptimSettings
from crisscross.config.training import TrainingSettings
from crisscross.utils.plain import plain_copy

Modality = Literal["v", "a", "av"]
"""Video, audio, the features of both one after the other."""


def streams_of(downstream: Mapping[str, Any]) -> str:
    """Return what a protocol has to decode, ``v``, ``a`` or ``av``; fine-tuning looks at pictures alone."""
    modalities = downstream.get("modalities", ("v",))
    return "".join(stream for stream in "av" if any(stream in modality for modality in modalities))


class FeatureSettings(Settings):
    """Features of a frozen backbone (crisscross/evaluation/feature_layers.py, features.py)."""

    video_layer: Literal["pooled", "max", "conv2x", "conv3x", "conv4x", "conv5x"]
    audio_layer: Literal["pooled", "max", "map", "block1", "block2", "block3", "block4"]
    normalise: Literal["none", "last_axis", "feature"]
    train_draws: int = Field(ge=0)


class FrozenSettings(Settings):
    """What protocols on frozen features share."""

    modalities: tuple[Modality, ...] = Field(min_length=1)
    features: FeatureSettings

    @property
    def streams(self) -> str:
        """What has to be decoded: ``v``, ``a`` or ``av``."""
        return streams_of({"modalities": self.modalities})


class SvmSettings(FrozenSettings):
    """The linear SVM (crisscross/evaluation/svm.py)."""

    name: Literal["svm"]
    standardise: bool
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    num_folds: int = Field(ge=2)
    select: Literal["validation", "test"]
    search_segments: int | None = Field(gt=0)


class LinearSettings(FrozenSettings):
    """The linear layer (crisscross/evaluation/linear_probe.py)."""

    name: Literal["linear"]
    standardise: bool
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    dropout: Rate


class RetrievalSettings(FrozenSettings):
    """Nearest neighbours (crisscross/evaluation/retrieval.py)."""

    name: Literal["retrieval"]
    distance: Literal["cosine", "euclidean"]
    centre: bool
    normalise_segments: bool
    ranks: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    num_neighbours: int = Field(ge=0)


class ClassifierSettings(Settings):
    """The head of fine-tuning (crisscross/models/heads.py) and the pooling before it."""

    pool: Literal["max", "avg"]
    hidden_dim: int | None = Field(gt=0)
    batch_norm: bool
    dropout: Rate


class FinetuneSettings(Settings):
    """Fine-tuning of the video network (crisscross/finetune.py), completed by the table."""

    name: Literal["finetune"]
    frames: int = Field(gt=0)
    pretrained_on: str
    head: ClassifierSettings
    freeze_backbone_epochs: int = Field(ge=0)
    optim: OptimSettings
    training: TrainingSettings
    streams: ClassVar[str] = "v"


FrozenProtocol = SvmSettings | LinearSettings | RetrievalSettings
"""Any of those on frozen features."""

Protocol = Annotated[FrozenProtocol | FinetuneSettings, Field(discriminator="name")]
"""Any of them, told apart by ``name``."""

MODALITIES = {"retrieval": ("v",)}
"""By protocol, what is evaluated on clips with pictures and sound, where that is not everything (PAPER section 5)."""

ALL_MODALITIES = ("v", "a", "av")


def complete(config: Mapping[str, Any], *, pretrained_on: str | None) -> dict[str, Any]:
    """Return a downstream config with nothing left open.

    Fine-tuning takes its numbers from the table (``finetune_recipes.py``). Other protocols evaluate the modalities that
    every clip has, as ``data.require`` says: ``[v]`` for ``[video]``, ``[a]`` for ``[audio]``.

    Args:
        config: the resolved config.
        pretrained_on: ``data.name`` of the pretraining that is evaluated; None where there is none.

    Raises:
        ValueError: one line, when a number is open and the table has no such row.
    """
    completed = plain_copy(dict(config))
    if completed["downstream"]["name"] == "finetune":
        fill_in(completed, pretrained_on=pretrained_on)
    elif completed["downstream"].get("modalities", ()) is None:
        required = completed["data"].get("require") or ("video", "audio")
        completed["downstream"]["modalities"] = [*_modalities(completed["downstream"]["name"], required)]
    return completed


def _modalities(protocol: str, required: Any) -> tuple[str, ...]:
    if "audio" not in required:
        return ("v",)
    if "video" not in required:
        return ("a",)
    return MODALITIES.get(protocol, ALL_MODALITIES)
