"""Settings of the evaluation protocols, one class per protocol (as in the paper)."""

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
"""Video, audio, or the features of both concatenated."""


def streams_of(downstream: Mapping[str, Any]) -> str:
    """Return the streams that a protocol decodes: ``v``, ``a`` or ``av``."""
    modalities = downstream.get("modalities", ("v",))
    return "".join(stream for stream in "av" if any(stream in modality for modality in modalities))


class FeatureSettings(Settings):
    """Features of frozen backbones (crisscross/evaluation/feature_layers.py, crisscross/training/features.py)."""

    # pooled and max: global average and maximum of the last map; a stage: its average
    video_layer: Literal["pooled", "max", "conv2x", "conv3x", "conv4x", "conv5x"]
    # the same; map: the last map, max-pooled over time and flattened (ESC-50 and DCASE)
    audio_layer: Literal["pooled", "max", "map", "block1", "block2", "block3", "block4"]
    normalise: Literal[
        "none", "last_axis", "feature"
    ]  # l2 norm: none, over the map's last axis (time), over all values
    train_draws: int = Field(ge=0)  # augmented random segments per training clip; 0 = evenly spaced, as for test clips


class FrozenSettings(Settings):
    """Settings that all protocols on frozen features share."""

    modalities: tuple[Modality, ...] = Field(min_length=1)  # evaluated one after another
    features: FeatureSettings

    @property
    def streams(self) -> str:
        """The streams to decode: ``v``, ``a`` or ``av``."""
        return streams_of({"modalities": self.modalities})


class SvmSettings(FrozenSettings):
    """The linear SVM (crisscross/evaluation/svm.py)."""

    name: Literal["svm"]
    standardise: bool  # scale features to mean 0 and standard deviation 1 over the training rows
    c_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1
    )  # values of C to try; larger = less regularized
    num_folds: int = Field(ge=2)  # folds of the cross-validation that chooses C
    select: Literal["validation", "test"]  # choose C by cross-validation, or on the test split (released)
    search_segments: int | None = Field(gt=0)  # segments per clip in the search for C; null = all


class LinearSettings(FrozenSettings):
    """The linear probe (crisscross/evaluation/linear_probe.py)."""

    name: Literal["linear"]
    standardise: bool  # scale features to mean 0 and standard deviation 1 over the training rows
    learning_rate: float = Field(gt=0)  # Adam's, constant
    weight_decay: float = Field(ge=0)
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)  # rows (clips x segments) per step
    dropout: Rate  # probability, before the linear layer


class RetrievalSettings(FrozenSettings):
    """Nearest-neighbor retrieval (crisscross/evaluation/retrieval.py)."""

    name: Literal["retrieval"]
    distance: Literal["cosine", "euclidean"]
    centre: bool  # subtract the mean of the test clips from them, and of the training clips from them
    normalise_segments: bool  # scale each segment's feature to length 1 before the mean over a clip
    ranks: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)  # values of k in R@k
    num_neighbours: int = Field(ge=0)  # neighbors per query in neighbours.csv


class ClassifierSettings(Settings):
    """The head of fine-tuning (crisscross/models/heads.py) and the pooling before it."""

    pool: Literal["max", "avg"]  # global pooling after the last stage
    hidden_dim: int | None = Field(gt=0)  # width of a hidden layer with batch norm and ReLU; null = one linear layer
    batch_norm: bool  # batch norm before the last layer
    dropout: Rate  # probability, before the last layer


class FinetuneSettings(Settings):
    """Fine-tuning of the video network (crisscross/finetune.py).

    ``finetune_recipes.py`` fills in the numbers that are null.
    """

    name: Literal["finetune"]
    frames: int = Field(gt=0)  # frames per clip
    pretrained_on: str  # data.name of the pretraining, which selects the recipe
    head: ClassifierSettings
    freeze_backbone_epochs: int = Field(ge=0)  # first epochs, in which only the head learns
    optim: OptimSettings
    training: TrainingSettings
    streams: ClassVar[str] = "v"


FrozenProtocol = SvmSettings | LinearSettings | RetrievalSettings
"""Any protocol on frozen features."""

Protocol = Annotated[FrozenProtocol | FinetuneSettings, Field(discriminator="name")]
"""Any protocol; ``name`` selects the class."""

MODALITIES = {"retrieval": ("v",)}
"""By protocol, the default modalities on clips with both streams, unless ``ALL_MODALITIES`` (as in the paper)."""

ALL_MODALITIES = ("v", "a", "av")


def complete(config: Mapping[str, Any], *, pretrained_on: str | None) -> dict[str, Any]:
    """Return a downstream config with its null values filled in.

    Fine-tuning takes its numbers from a table (``finetune_recipes.py``). The other protocols evaluate the modalities
    that ``data.require`` guarantees: ``[v]`` for ``[video]``, ``[a]`` for ``[audio]``.

    Args:
        config: the resolved config.
        pretrained_on: ``data.name`` of the pretraining to evaluate; None if there is none.

    Raises:
        ValueError: if a number is null and the table has no row for it.
    """
    completed = plain_copy(dict(config))
    protocol = completed["downstream"].get("name")
    if protocol == "finetune":
        fill_in(completed, pretrained_on=pretrained_on)
    elif completed["downstream"].get("modalities", ()) is None:
        required = completed["data"].get("require") or ("video", "audio")
        completed["downstream"]["modalities"] = [*_modalities(protocol, required)]
    return completed


def _modalities(protocol: Any, required: Any) -> tuple[str, ...]:
    if "audio" not in required:
        return ("v",)
    if "video" not in required:
        return ("a",)
    return MODALITIES.get(protocol, ALL_MODALITIES)
