"""Which tensors each layer of a network holds, told from the settings alone. Plain arithmetic: torch is not imported.

Forecasts of what a run writes are made of these (crisscross/models/sizes.py). The tests compare with real networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from crisscross.models.settings import (
    AudioModelSettings,
    ModelSettings,
    PaperVideoSettings,
    TorchvisionVideoSettings,
)

BLOCKS_BY_DEPTH: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}
"""Blocks of each stage of the paper's R(2+1)D, by depth."""

FLOAT_BYTES = 4  # weights, statistics and moments are fp32, whatever the precision of training
_COUNTER_BYTES = 8  # a batch normalisation counts its batches in an int64


@dataclass(frozen=True)
class Layer:
    """A layer's tensors.

    Attributes:
        parameters: number of values of each trained tensor.
        buffers: bytes of each tensor that is saved but not trained.
    """

    parameters: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()

    def untrained(self) -> Layer:
        """Return a copy that no optimiser looks after, as a momentum encoder has."""
        return Layer(buffers=(*(FLOAT_BYTES * count for count in self.parameters), *self.buffers))


def num_parameters(layers: Iterable[Layer]) -> int:
    """Return the number of trained values."""
    return sum(sum(layer.parameters) for layer in layers)


def video_layers(video: PaperVideoSettings | TorchvisionVideoSettings) -> list[Layer]:
    """Return the layers of a video backbone."""
    return _torchvision(video) if isinstance(video, TorchvisionVideoSettings) else _paper_video(video)


def audio_layers(audio: AudioModelSettings) -> list[Layer]:
    """Return the layers of the audio backbone, as ``crisscross/models/audio_resnet.py`` builds it."""
    width = audio.width
    layers = [_convolution(1, width, kernel=7 * 7), norm(width)]
    for before, after, strided in _blocks(width, audio.layers):
        for channels in (before, after):
            layers += [_convolution(channels, after, kernel=3 * 3), norm(after)]
        if strided:
            layers += [_convolution(before, after, kernel=1), norm(after)]
    return layers


def projector(input_dim: int, model: ModelSettings) -> list[Layer]:
    """Return linear layers with a normalisation after each, as in ``crisscross/models/heads.py``."""
    head = model.projector
    dims = [input_dim, *[head.hidden_dim] * (head.num_layers - 1), head.output_dim]
    return [layer for before, after in pairwise(dims) for layer in (linear(before, after), norm(after))]


def predictor(model: ModelSettings) -> list[Layer]:
    """Return two linear layers with a normalisation between, as in ``crisscross/models/heads.py``."""
    dim, hidden_dim = model.projector.output_dim, model.predictor.hidden_dim
    return [linear(dim, hidden_dim), norm(hidden_dim), linear(hidden_dim, dim)]


def linear(before: int, after: int) -> Layer:
    """Return a linear layer with a bias."""
    return Layer((before * after, after))


def norm(channels: int) -> Layer:
    """Return a batch normalisation: weight and bias are trained, mean, variance and number of batches are not."""
    return Layer((channels, channels), (FLOAT_BYTES * channels, FLOAT_BYTES * channels, _COUNTER_BYTES))


def _paper_video(video: PaperVideoSettings) -> list[Layer]:
    """R(2+1)D, as in ``crisscross/models/r2plus1d.py``."""
    width = video.width
    layers = [_convolution(3, width, kernel=3 * 7 * 7), norm(width)]
    for before, after, strided in _blocks(width, BLOCKS_BY_DEPTH[video.depth]):
        for channels, kernel in ((before, 3 * 3), (after, 3), (after, 3 * 3), (after, 3)):  # space, time, space, time
            layers += [_convolution(channels, after, kernel=kernel), norm(after)]
        if strided:
            layers.append(_convolution(before, after, kernel=1))
    return layers


def _torchvision(video: TorchvisionVideoSettings) -> list[Layer]:
    """R(2+1)D-18 and 3D-ResNet18 without their classifier, as in ``crisscross/models/torchvision_video.py``."""
    factorised = video.torchvision == "r2plus1d_18"
    if factorised:
        layers = [_convolution(3, 45, kernel=7 * 7), norm(45), _convolution(45, 64, kernel=3), norm(64)]
    else:
        layers = [_convolution(3, 64, kernel=3 * 7 * 7), norm(64)]
    for before, after, strided in _blocks(64, BLOCKS_BY_DEPTH[18]):
        between = 27 * before * after // (9 * before + 3 * after)  # as many parameters as a 3 x 3 x 3 convolution
        for channels in (before, after):
            if factorised:
                layers += [_convolution(channels, between, kernel=3 * 3), norm(between)]
                layers += [_convolution(between, after, kernel=3), norm(after)]
            else:
                layers += [_convolution(channels, after, kernel=3 * 3 * 3), norm(after)]
        if strided:
            layers += [_convolution(before, after, kernel=1), norm(after)]
    return layers


def _blocks(width: int, num_blocks: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Channels before and after each block of a ResNet, and whether it changes the shape."""
    blocks = []
    channels = width
    for stage, num in enumerate(num_blocks):
        for index in range(num):
            blocks.append((channels, width * 2**stage, stage > 0 and index == 0))
            channels = width * 2**stage
    return blocks


def _convolution(before: int, after: int, *, kernel: int) -> Layer:
    return Layer((before * after * kernel,))
