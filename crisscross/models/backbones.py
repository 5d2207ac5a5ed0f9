"""The video and audio backbones of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from crisscross.config.model import ModelSettings, PaperVideoSettings, TorchvisionVideoSettings
from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.init import initialize
from crisscross.models.r2plus1d import VideoBackbone
from crisscross.models.torchvision_video import TorchvisionBackbone
from crisscross.models.video_base import VideoNetwork
from crisscross.models.weights_io import load_audio_backbone, load_video_backbone

Backbone = VideoNetwork | AudioBackbone
Loaded = TypeVar("Loaded", bound=nn.Module)


class Backbones(nn.Module):
    """A video backbone, an audio backbone, or both.

    Attributes:
        video_backbone: (B, 3, T, H, W) -> (B, D).
        audio_backbone: (B, 1, F, T) -> (B, D).
    """

    video_backbone: VideoNetwork
    audio_backbone: AudioBackbone

    def __init__(self, model: ModelSettings, *, modalities: str = "av") -> None:
        """Build the backbones from the config's ``model`` node.

        Args:
            model: the config's ``model`` node.
            modalities: ``v``, ``a`` or ``av``.
        """
        super().__init__()
        if "v" in modalities:
            self.video_backbone = build_video(model.video)
        if "a" in modalities:
            self.audio_backbone = AudioBackbone(layers=tuple(model.audio.layers), width=model.audio.width)

    def backbone(self, modality: str) -> Backbone:
        """Return the backbone of ``video`` or ``audio``."""
        return self.video_backbone if modality == "video" else self.audio_backbone


def build_video(video: PaperVideoSettings | TorchvisionVideoSettings) -> VideoNetwork:
    """Build the video backbone of the config's ``model.video``."""
    if isinstance(video, TorchvisionVideoSettings):
        return TorchvisionBackbone(video.torchvision)
    return VideoBackbone(depth=video.depth, width=video.width)


def random_init_backbones(model: ModelSettings, *, seed: int) -> Backbones:
    """Return backbones with the initial weights of a pretraining with this seed."""
    backbones = Backbones(model)
    initialize(backbones, seed_key=seed)
    return backbones


def load_backbones(model: ModelSettings, *, video: Path | None, audio: Path | None) -> Backbones:
    """Load backbones from files in the released format.

    A backbone without a file is initialized randomly.

    Args:
        model: sizes of the backbones in the config.
        video: file of the video backbone.
        audio: file of the audio backbone.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not a backbone's state dict, or its size differs from the config's.
    """
    backbones = random_init_backbones(model, seed=0)
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
