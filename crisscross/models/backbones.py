"""The pair of backbones that every experiment trains or evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from crisscross.config.model import ModelSettings, PaperVideoSettings, TorchvisionVideoSettings
from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.init import initialise
from crisscross.models.r2plus1d import VideoBackbone
from crisscross.models.torchvision_video import TorchvisionBackbone
from crisscross.models.video_base import VideoNetwork
from crisscross.models.weights_io import load_audio_backbone, load_video_backbone

Backbone = VideoNetwork | AudioBackbone
Loaded = TypeVar("Loaded", bound=nn.Module)


class Backbones(nn.Module):
    """A video and an audio backbone, or one of them.

    Attributes:
        video_backbone: (B, 3, T, H, W) -> (B, D).
        audio_backbone: (B, 1, F, T) -> (B, D).
    """

    video_backbone: VideoNetwork
    audio_backbone: AudioBackbone

    def __init__(self, model: ModelSettings, *, modalities: str = "av") -> None:
        """Build them at the sizes of the config's ``model`` node: both, or that of ``v`` or ``a`` alone."""
        super().__init__()
        if "v" in modalities:
            self.video_backbone = build_video(model.video)
        if "a" in modalities:
            self.audio_backbone = AudioBackbone(layers=tuple(model.audio.layers), width=model.audio.width)

    def backbone(self, modality: str) -> Backbone:
        """Return the backbone of ``video`` or ``audio``."""
        return self.video_backbone if modality == "video" else self.audio_backbone


def build_video(video: PaperVideoSettings | TorchvisionVideoSettings) -> VideoNetwork:
    """Return the video backbone that the config's ``model.video`` asks for."""
    if isinstance(video, TorchvisionVideoSettings):
        return TorchvisionBackbone(video.torchvision)
    return VideoBackbone(depth=video.depth, width=video.width)


def untrained_backbones(model: ModelSettings, *, seed: int) -> Backbones:
    """Return backbones with the very weights that a pretraining of this seed starts from."""
    backbones = Backbones(model)
    initialise(backbones, seed_key=seed)
    return backbones


def load_backbones(model: ModelSettings, *, video: Path | None, audio: Path | None) -> Backbones:
    """Load backbones from files in the released format; a modality without a file stays untrained.

    Args:
        model: the sizes that the experiment says it evaluates.
        video: file of the video backbone.
        audio: file of the audio backbone.

    Raises:
        FileNotFoundError: when a file is not there.
        ValueError: when a file is not what it should be, or of another size than the config says.
    """
    backbones = untrained_backbones(model, seed=0)
    if video is not None:
        backbones.video_backbone = _of_expected_size(load_video_backbone(video), backbones.video_backbone, video)
    if audio is not None:
        backbones.audio_backbone = _of_expected_size(load_audio_backbone(audio), backbones.audio_backbone, audio)
    return backbones


def _of_expected_size(loaded: Loaded, expected: nn.Module, path: Path) -> Loaded:
    if _shapes(loaded) != _shapes(expected):
        raise ValueError(
            f"{path} holds {loaded.extra_repr()}, the config's model node asks for {expected.extra_repr()}:"
            " set scale= or model= to that of the weights"
        )
    return loaded


def _shapes(module: nn.Module) -> Sequence[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in module.state_dict().values()]
