"""Settings of the methods, one class a method: a launch checks them before anything is submitted.

A method that has no class here works all the same; what is wrong with its numbers then shows when its job begins.
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


def method_names() -> list[str]:
    """Return the names of the methods: the files of crisscross/methods, none of which is imported."""
    folder = importlib.import_module("crisscross.methods")  # the folder alone: its __init__ imports nothing
    names = {module.name for module in pkgutil.iter_modules(folder.__path__)}
    return sorted(names - {"base"})


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
