"""Settings of the methods, one class a method: a launch checks them before anything is submitted.

A method that has no class here works all the same; what is wrong with its numbers then shows when its job begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from crisscross.settings_base import Settings, parse_node


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


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {"crisscross": CrissCrossSettings, "xdc": XDCSettings}
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
