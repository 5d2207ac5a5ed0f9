"""Settings of the networks: the config's ``model`` node (as in the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from crisscross.config.base import Settings


class PaperVideoSettings(Settings):
    """The paper's R(2+1)D (crisscross/models/r2plus1d.py)."""

    depth: Literal[10, 18, 34]  # convolutional layers; the paper's is 18
    width: int = Field(gt=0)  # channels of the first stage, doubled from stage to stage; the paper's is 64

    @property
    def feature_dim(self) -> int:
        """Length of a pooled feature."""
        return 8 * self.width


class TorchvisionVideoSettings(Settings):
    """A video network from torchvision (crisscross/models/torchvision_video.py)."""

    torchvision: Literal["r2plus1d_18", "r3d_18"]  # its name in torchvision.models.video

    @property
    def feature_dim(self) -> int:
        """Length of a pooled feature."""
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
"""Either network; their keys tell them apart, since a key for the kind would change the identity of every run."""


class AudioModelSettings(Settings):
    """The audio ResNet (crisscross/models/audio_resnet.py)."""

    layers: tuple[int, int, int, int]  # blocks per stage; the paper's ResNet-18 has [2,2,2,2]
    width: int = Field(gt=0)  # channels of the first stage, doubled from stage to stage; the paper's is 64

    @property
    def feature_dim(self) -> int:
        """Length of a pooled feature."""
        return 8 * self.width


class ProjectorSettings(Settings):
    """The MLP after each backbone (crisscross/models/heads.py)."""

    hidden_dim: int = Field(gt=0)  # width of the hidden layers
    output_dim: int = Field(gt=0)  # length of an embedding
    num_layers: int = Field(gt=0)  # linear layers


class PredictorSettings(Settings):
    """The two-layer MLP after each projector (crisscross/models/heads.py)."""

    hidden_dim: int = Field(gt=0)  # width of the hidden layer


class ModelSettings(Settings):
    """Backbones and heads."""

    video: VideoModelSettings
    audio: AudioModelSettings
    projector: ProjectorSettings
    predictor: PredictorSettings
