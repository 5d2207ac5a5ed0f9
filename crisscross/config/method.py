"""Settings of the pretraining methods, one class per method.

They are checked before anything is submitted. A class is optional: without one, wrong numbers of a method show only
when its job starts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from crisscross.config.base import Rate, Settings, parse_node


@dataclass(frozen=True)
class DatasetInfo:
    """Size of the training split that a method learns from.

    Attributes:
        num_clips: clips in the training split.
        num_classes: classes in the dataset.
    """

    num_clips: int
    num_classes: int


class MethodSettings(Settings):
    """Settings that all methods share.

    Attributes:
        modalities: ``v``, ``a`` or ``av``: the streams of a clip that the method needs, and so the backbones it trains.
        num_views: views of a clip that the method needs; with one view the relaxation must be ``none``.
    """

    modalities: ClassVar[str] = "av"
    num_views: ClassVar[int] = 2

    name: str  # a file of crisscross/methods

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Check that the training split is large enough.

        Args:
            num_clips: clips in the training split.
            num_classes: classes in the dataset.

        Raises:
            ValueError: if it is too small for the method.
        """

    def check_batch(self, samples_per_pass: int) -> None:
        """Check that the method can learn from batches of this size.

        Args:
            samples_per_pass: samples in one forward pass, over all devices.

        Raises:
            ValueError: if the batch is too large or too small for the method.
        """


class AvidSettings(MethodSettings):
    """AVID: cross-modal instance discrimination (crisscross/methods/avid.py)."""

    num_views: ClassVar[int] = 1

    num_negatives: int = Field(gt=0)  # other clips that each clip is compared with, per step
    temperature: float = Field(ge=0.02, allow_inf_nan=False)  # below 0.02 the loss overflows single precision
    memory_momentum: Rate  # fraction of a clip's old memory that stays after an update
    head_dims: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)  # widths of the linear layers of each head
    head_batch_norm: bool  # batch norm after each linear layer of the heads
    pool: Literal["avg", "max"]  # global pooling of the video network

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Check that there are as many other clips as negatives."""
        if num_clips < 2:
            raise ValueError(f"method.name=avid compares clips with each other, got {num_clips} clip: add clips")
        if num_clips <= self.num_negatives:
            raise ValueError(
                f"method.num_negatives={self.num_negatives} is more than the {num_clips - 1} other clips that a clip"
                f" has among {num_clips}: set method.num_negatives={num_clips - 1} or lower, or add clips"
            )


class CmaccSettings(MethodSettings):
    """CM-ACC: cross-modal active contrastive coding (crisscross/methods/cmacc.py)."""

    num_views: ClassVar[int] = 1

    hidden_dim: int = Field(gt=0)  # width of the hidden layer of each head
    embedding_dim: int = Field(gt=0)  # length of queries and keys
    temperature: float = Field(gt=0, allow_inf_nan=False)  # divides the cosines
    encoder_momentum: float = Field(ge=0, lt=1)  # fraction of the key encoders' weights that stays after a step
    pool_size: int = Field(gt=0)  # latest keys per modality, from which negatives are chosen
    dictionary_size: int = Field(gt=0)  # chosen keys per modality

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Check that the negatives can be distinct clips."""
        if self.dictionary_size >= num_clips:
            raise ValueError(
                f"method.dictionary_size={self.dictionary_size} negatives: the training split has {num_clips} clips:"
                f" set it to at most {num_clips - 1}, or add clips"
            )

    def check_batch(self, samples_per_pass: int) -> None:
        """Check that the pool is larger than the batch."""
        if self.pool_size <= samples_per_pass:
            raise ValueError(
                f"method.pool_size={self.pool_size}: expected more than the {samples_per_pass} samples of a pass, since"
                " as many keys are chosen from the pool: raise it, or lower training.micro_batch_size"
            )


class CrissCrossSettings(MethodSettings):
    """CrissCross: weights of the pair losses (crisscross/methods/crisscross.py)."""

    video_weight: float = Field(allow_inf_nan=False)  # v1v2: within video, across time; 0 switches the group off
    audio_weight: float = Field(allow_inf_nan=False)  # a1a2: within audio, across time
    sync_weight: float = Field(allow_inf_nan=False)  # v1a1, v2a2: across modalities, same time
    async_weight: float = Field(allow_inf_nan=False)  # v1a2, v2a1: across modalities, across time

    @model_validator(mode="after")
    def _one_weight_is_positive(self) -> CrissCrossSettings:
        weights = {name: getattr(self, name) for name in type(self).model_fields if name.endswith("_weight")}
        if min(weights.values()) < 0 or not any(weights.values()):
            given = ", ".join(f"method.{name}={value:g}" for name, value in weights.items())
            raise ValueError(f"{given}: no weight may be negative and one must be positive")
        return self


class SupervisedSettings(MethodSettings):
    """Supervised pretraining; it has no settings (crisscross/methods/supervised.py)."""

    modalities: ClassVar[str] = "v"
    num_views: ClassVar[int] = 1

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Check that there are labels to learn."""
        del num_clips  # any number is enough
        if num_classes < 2:
            raise ValueError(
                f"method={self.name} learns labels, the clips have {num_classes} class: use labeled clips (one folder"
                " per class, or data.label_column of a table), or pretrain without labels: method=crisscross"
            )


class XDCSettings(MethodSettings):
    """XDC: cross-modal deep clustering (crisscross/methods/xdc.py)."""

    num_views: ClassVar[int] = 1

    num_clusters: int = Field(gt=1)  # clusters per modality
    recluster_every_epochs: int = Field(gt=0)  # epochs between two clusterings
    whiten_dims: int = Field(gt=0)  # principal components to cluster, at most
    kmeans_iterations: int = Field(gt=0)  # iterations of Lloyd's algorithm, at most

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Check that there are at least as many clips as clusters."""
        if num_clips < self.num_clusters:
            raise ValueError(
                f"method.num_clusters={self.num_clusters} is more than the {num_clips} clips of the training split:"
                " lower it, or add clips"
            )


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "avid": AvidSettings,
    "cmacc": CmaccSettings,
    "crisscross": CrissCrossSettings,
    "supervised": SupervisedSettings,
    "xdc": XDCSettings,
}
"""By ``method.name``."""


def settings_of(method: Mapping[str, Any]) -> MethodSettings | None:
    """Check a ``method`` node.

    Returns:
        Its settings; None if the method has no settings class.

    Raises:
        ValueError: if a key or value is wrong; one line, as from ``parse``.
    """
    kind = METHOD_SETTINGS.get(method.get("name", ""))
    return None if kind is None else parse_node("method", kind, method)


def method_names() -> list[str]:
    """Return the names of the methods: the files of crisscross/methods."""
    folder = importlib.import_module("crisscross.methods")  # only the package: its __init__ imports no method
    names = {module.name for module in pkgutil.iter_modules(folder.__path__)}
    return sorted(names - {"base"})


def modalities_of(method: Mapping[str, Any]) -> str:
    """Return the backbones that a method trains: ``v``, ``a`` or ``av``."""
    return METHOD_SETTINGS.get(method.get("name", ""), MethodSettings).modalities


def check_modalities(method: Mapping[str, Any], streams: str, *, label: str) -> None:
    """Check that a pretraining trains the backbones that an evaluation needs.

    Args:
        method: the pretraining's ``method`` node.
        streams: what the evaluation needs: ``v``, ``a`` or ``av``.
        label: the name of the pretraining, for messages.

    Raises:
        ValueError: if one of the backbones is not trained.
    """
    trained = modalities_of(method)
    for letter, what in (("v", "video"), ("a", "audio")):
        if letter in streams and letter not in trained:
            raise ValueError(
                f"{label} trains no {what} network (method.name={method['name']}): set"
                f" downstream.modalities=[{trained}], or take another pretraining"
            )
