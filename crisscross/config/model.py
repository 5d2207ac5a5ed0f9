"""Settings of the networks: the config's ``model`` node. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from crisscross.config.base import Settings


class PaperVideoSettings(Settings):
    """The paper's R(2+1)D, of a depth and a width (crisscross/models/r2plus1d.py)."""

    depth: Literal[10, 18, 34]
    width: int = Field(gt=0)

    @property
    def feature_dim(self) -> int:
        """Values of a pooled feature."""
        return 8 * self.width


class TorchvisionVideoSettings(Settings):
    """A network of torchvision's, by its name there (crisscross/models/torchvision_video.py)."""

    torchvision: Literal["r2plus1d_18", "r3d_18"]

    @property
    def feature_dim(self) -> int:
        """Values of a pooled feature."""
        return 512


def _kind_of(video: Any) -> str:
    is_torchvision = isinstance(video, TorchvisionVideoSettings) or (
        isinstance(video, Mapping) and "torchvision" in video
    )
    return "torchvision" if is_torchvision else "paper"


VideoModelSettings = Annotated[
    Annotated[PaperVideoSettings, Tag("paper")] | Annotated[TorchvisionVideoSettings, Tag("torchvision")],
    Discriminator(_kind_of),
]
"""Either of them, told apart by their keys: a key for the kind would have changed the identity of every run."""


class AudioModelSettings(Settings):
    """ResNet of so many blocks a stage and a width."""

    layers: tuple[int, int, int, int]
    width: int = Field(gt=0)

    @property
    def feature_dim(self) -> int:
        """Values of a pooled feature."""
        return 8 * self.width


class ProjectorSettings(Settings):
    """The MLP after a backbone."""

    hidden_dim: int = Field(gt=0)
    output_dim: int = Field(gt=0)
    num_layers: int = Field(gt=0)


class PredictorSettings(Settings):
    """The MLP after a projector."""

    hidden_dim: int = Field(gt=0)


class ModelSettings(Settings):
    """Backbones and heads."""

    video: VideoModelSettings
    audio: AudioModelSettings
    projector: ProjectorSettings
    predictor: PredictorSettings
