"""Settings of the methods, one class a method: a launch checks them before anything is submitted.

A method that has no class here works all the same; what is wrong with its numbers then shows when its job begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from crisscross.models.layers import FLOAT_BYTES, Layer, audio_layers, linear, norm, predictor, projector, video_layers
from crisscross.models.settings import ModelSettings
from crisscross.settings_base import Rate, Settings, parse_node


@dataclass(frozen=True)
class ClipFacts:
    """What a method is told of the clips that it will learn from.

    Attributes:
        num_clips: clips of the training split.
        num_classes: classes of the dataset.
    """

    num_clips: int
    num_classes: int


class MethodSettings(Settings):
    """What is known of a method before it is built.

    Attributes:
        modalities: ``v``, ``a`` or ``av``: what of a clip it wants, and hence which backbones it trains.
        num_views: views of a clip that it wants; of one view the relaxation can only be ``none``.
    """

    modalities: ClassVar[str] = "av"
    num_views: ClassVar[int] = 2

    name: str

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Make sure that there is enough to learn from.

        Args:
            num_clips: clips of the training split.
            num_classes: classes of the dataset.

        Raises:
            ValueError: there is not, in one line with the remedy.
        """

    def layers(self, model: ModelSettings, clips: ClipFacts) -> list[Layer]:
        """Return what it trains and keeps beside its backbones: what its checkpoints will hold is told from this.

        Heads are layers, a memory bank is ``Layer(buffers=(bytes,))``, a momentum encoder is the ``untrained`` copy of
        its layers. Unless a method says otherwise: a projector and a predictor on each backbone.
        """
        del clips
        dims = [{"v": model.video, "a": model.audio}[letter].feature_dim for letter in self.modalities]
        return [layer for dim in dims for layer in (*projector(dim, model), *predictor(model))]

    def check_batch(self, samples_per_pass: int) -> None:
        """Make sure that the method can learn from so many samples at a time, over all devices.

        Raises:
            ValueError: it cannot, in one line with the remedy.
        """


class AvidSettings(MethodSettings):
    """Cross-modal instance discrimination (crisscross/methods/avid.py).

    The temperature stays above what would take e^s out of single precision.
    """

    num_views: ClassVar[int] = 1

    num_negatives: int = Field(gt=0)
    temperature: float = Field(ge=0.02, allow_inf_nan=False)
    memory_momentum: Rate
    head_dims: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    head_batch_norm: bool
    pool: Literal["avg", "max"]

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """A clip's negatives are other clips: there have to be that many."""
        if num_clips < 2:
            raise ValueError(f"method.name=avid tells clips from each other, there is {num_clips}: give it more clips")
        if num_clips <= self.num_negatives:
            raise ValueError(
                f"method.num_negatives={self.num_negatives} are more than the {num_clips - 1} other clips that a clip"
                f" has among {num_clips}: set method.num_negatives={num_clips - 1} or lower, or give it more clips"
            )

    def layers(self, model: ModelSettings, clips: ClipFacts) -> list[Layer]:
        """Return its heads and its memories of every clip."""
        norms = [norm(width) for width in (*self.head_dims, *self.head_dims)] if self.head_batch_norm else []
        memories = _floats(clips.num_clips * self.head_dims[-1], num=2)
        return [*_heads(model, self.head_dims), *norms, *memories, *_floats(1)]


class CmaccSettings(MethodSettings):
    """Heads, temperature, momentum and how many keys are kept (crisscross/methods/cmacc.py)."""

    num_views = 1

    hidden_dim: int = Field(gt=0)
    embedding_dim: int = Field(gt=0)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    encoder_momentum: float = Field(ge=0, lt=1)
    pool_size: int = Field(gt=0)
    dictionary_size: int = Field(gt=0)

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """See that the dictionary's negatives can be different clips; a pool may hold several draws of a clip."""
        if self.dictionary_size >= num_clips:
            raise ValueError(
                f"method.dictionary_size={self.dictionary_size} negatives: the training split has {num_clips} clips:"
                f" set it to at most {num_clips - 1}, or take a larger dataset"
            )

    def check_batch(self, samples_per_pass: int) -> None:
        """See that there is something to choose: as many of the pool's keys are as the batch has clips."""
        if self.pool_size <= samples_per_pass:
            raise ValueError(
                f"method.pool_size={self.pool_size}: expected more than the {samples_per_pass} samples of a pass, since"
                " as many keys are chosen from the pool: raise it, or lower training.micro_batch_size"
            )

    def layers(self, model: ModelSettings, clips: ClipFacts) -> list[Layer]:
        """Return its heads, the momentum encoders, pools and dictionaries."""
        heads = [
            layer
            for dim in (model.video.feature_dim, model.audio.feature_dim)
            for before, after in ((dim, self.hidden_dim), (self.hidden_dim, self.embedding_dim))
            for layer in (linear(before, after), norm(after))
        ]
        online = [*video_layers(model.video), *audio_layers(model.audio), *heads]
        queues = [
            Layer(buffers=(FLOAT_BYTES * size * self.embedding_dim, 2 * FLOAT_BYTES * size))  # keys, and whose they are
            for size in (self.pool_size, self.dictionary_size)
        ]
        return [*heads, *(layer.untrained() for layer in online), *queues, *queues]


class CrissCrossSettings(MethodSettings):
    """The weights of the families of pair losses (crisscross/methods/crisscross.py)."""

    video_weight: float = Field(allow_inf_nan=False)
    audio_weight: float = Field(allow_inf_nan=False)
    sync_weight: float = Field(allow_inf_nan=False)
    async_weight: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _leave_something_to_learn(self) -> CrissCrossSettings:
        weights = {name: getattr(self, name) for name in type(self).model_fields if name.endswith("_weight")}
        if min(weights.values()) < 0 or not any(weights.values()):
            given = ", ".join(f"method.{name}={value:g}" for name, value in weights.items())
            raise ValueError(f"{given}: no weight may be negative and one must be positive")
        return self


class SupervisedSettings(MethodSettings):
    """Supervised pretraining has nothing to set (crisscross/methods/supervised.py)."""

    modalities: ClassVar[str] = "v"
    num_views: ClassVar[int] = 1

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Make sure that there are labels to learn."""
        del num_clips  # any will do
        if num_classes < 2:
            raise ValueError(
                f"method={self.name} learns labels, the clips have {num_classes} class: give labelled ones (a folder a"
                " class, or data.label_column of a table), or pretrain without labels: method=crisscross"
            )

    def layers(self, model: ModelSettings, clips: ClipFacts) -> list[Layer]:
        """Return its linear layer."""
        return [linear(model.video.feature_dim, clips.num_classes)]


class XDCSettings(MethodSettings):
    """How clips are clustered, and how often (crisscross/methods/xdc.py)."""

    num_views: ClassVar[int] = 1

    num_clusters: int = Field(gt=1)
    recluster_every_epochs: int = Field(gt=0)
    whiten_dims: int = Field(gt=0)
    kmeans_iterations: int = Field(gt=0)

    def check_clips(self, *, num_clips: int, num_classes: int) -> None:
        """Make sure that there are as many clips as clusters."""
        if num_clips < self.num_clusters:
            raise ValueError(
                f"method.num_clusters={self.num_clusters} is more than the {num_clips} clips of the training split:"
                " lower it, or take more clips"
            )

    def layers(self, model: ModelSettings, clips: ClipFacts) -> list[Layer]:
        """Return its heads, the clusters of every clip and the epoch that they belong to."""
        clusters = Layer(buffers=(*[2 * FLOAT_BYTES * clips.num_clips] * 2, 2 * FLOAT_BYTES))  # int64
        return [*_heads(model, (self.num_clusters,)), clusters]


def _heads(model: ModelSettings, dims: Sequence[int]) -> list[Layer]:
    """Return an MLP on each backbone."""
    widths = [(feature_dim, *dims) for feature_dim in (model.video.feature_dim, model.audio.feature_dim)]
    return [linear(before, after) for each in widths for before, after in pairwise(each)]


def _floats(count: int, *, num: int = 1) -> list[Layer]:
    """Return tensors of single precision that are kept but not trained."""
    return [Layer(buffers=(FLOAT_BYTES * count,))] * num


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "avid": AvidSettings,
    "cmacc": CmaccSettings,
    "crisscross": CrissCrossSettings,
    "supervised": SupervisedSettings,
    "xdc": XDCSettings,
}
"""By the method's name."""


def settings_of(method: Mapping[str, Any]) -> MethodSettings | None:
    """Return the checked settings of a ``method`` node; None of a method that is not known here.

    Raises:
        ValueError: one line that names every wrong key, its value and what was expected.
    """
    kind = METHOD_SETTINGS.get(method.get("name", ""))
    return None if kind is None else parse_node("method", kind, method)


def modalities_of(method: Mapping[str, Any]) -> str:
    """Return ``v``, ``a`` or ``av``: which backbones a method trains."""
    return METHOD_SETTINGS.get(method.get("name", ""), MethodSettings).modalities


def check_modalities(method: Mapping[str, Any], streams: str, *, label: str) -> None:
    """Make sure that a pretraining trains what an evaluation looks at or listens to.

    Args:
        method: the pretraining's ``method`` node.
        streams: ``v``, ``a`` or ``av``.
        label: what the pretraining is called.

    Raises:
        ValueError: one line with the remedy, when it does not.
    """
    trained = modalities_of(method)
    for letter, what in (("v", "video"), ("a", "audio")):
        if letter in streams and letter not in trained:
            raise ValueError(
                f"{label} trains no {what} network (method.name={method['name']}): set"
                f" downstream.modalities=[{trained}], or take another pretraining"
            )
