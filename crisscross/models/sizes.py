"""How large a network and its checkpoints will be, told from the config alone. Plain arithmetic: torch is not imported.

The launch side asks before anything runs whether the disk has room. What is counted are the parts that the config's
``model`` node sizes and CrissCross trains: both backbones, a projector and a predictor on each. The tests compare with
the real networks and with real files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crisscross.settings import DownstreamSettings, ModelSettings, PretrainSettings
    from crisscross.training.settings import OptimSettings, TrainingSettings

BLOCKS_BY_DEPTH: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}
"""Blocks of each stage of R(2+1)D, by depth."""

CHECKPOINTS_BESIDE_THE_KEPT = 3
"""The last two (``CheckpointWriter``'s ``keep_last``) and the one that is being written."""

_FLOAT_BYTES = 4  # weights, statistics and moments are fp32, whatever the precision of training
_COUNTER_BYTES = 8  # a batch normalisation counts its batches in an int64
_ALIGNED_BYTES = 64  # torch.save begins every tensor at a multiple of this
_BYTES_A_TENSOR = 300  # its name, place and shape in the archive; measured with PyTorch 2.11: 210 to 320
_BYTES_A_FILE = 4096  # an archive without tensors, the optimiser's settings; measured: 1.3 kB and a few hundred bytes


@dataclass(frozen=True)
class Layer:
    """A layer's tensors.

    Attributes:
        parameters: number of values of each trained tensor.
        buffers: bytes of each tensor that is saved but not trained.
    """

    parameters: tuple[int, ...]
    buffers: tuple[int, ...] = ()


def num_parameters(model: ModelSettings) -> int:
    """Return the number of trained values: 49,662,080 at the paper's size.

    Args:
        model: the config's ``model`` node.
    """
    return sum(sum(layer.parameters) for layer in _network(model))


def checkpoint_bytes(settings: PretrainSettings | DownstreamSettings) -> int:
    """Return the bytes of one checkpoint: weights, statistics of the batch normalisations, the optimiser's moments.

    Where a method leaves a modality untrained, the optimiser keeps nothing for it and the file is smaller. The head of
    a fine-tuning, whose classes are not known here, is left out: 51,813 of 15.4 million values for UCF101.

    Args:
        settings: the settings of a pretraining or a fine-tuning.
    """
    layers, training, optim = _trained(settings)
    sizes = _saved_bytes(layers)
    if training.epochs:  # an optimiser that has taken no step has no moments
        weights = [_FLOAT_BYTES * count for layer in layers for count in layer.parameters]
        if optim.name == "adam":  # two moments, and a number of steps for each tensor
            sizes += [*weights, *weights, *[_FLOAT_BYTES] * len(weights)]
        elif optim.momentum:
            sizes += weights
    return _file_bytes(sizes)


def backbones_bytes(model: ModelSettings) -> int:
    """Return the bytes of the two backbones that a pretraining leaves in the format of released weights.

    Args:
        model: the config's ``model`` node.
    """
    return sum(_file_bytes(_saved_bytes(layers)) for layers in (_video(model), _audio(model)))


def checkpoints_bytes(settings: PretrainSettings | DownstreamSettings) -> int:
    """Return the most that a training's checkpoints and exported weights take on disk at a time.

    That is while the last checkpoint is written: those of ``training.keep_epochs`` stay, as do the two before it.
    A kill in the middle of a write leaves a torn file, which the next write clears away: up to one checkpoint more.

    Args:
        settings: the settings of a pretraining or a fine-tuning.
    """
    layers, training, _ = _trained(settings)
    kept = len({epoch for epoch in training.keep_epochs if 0 < epoch < training.epochs})
    num = kept + CHECKPOINTS_BESIDE_THE_KEPT if training.epochs else 1
    is_pretraining = not hasattr(settings, "downstream")
    exported = backbones_bytes(settings.model) if is_pretraining else _file_bytes(_saved_bytes(layers))
    return num * checkpoint_bytes(settings) + exported


def _trained(settings: PretrainSettings | DownstreamSettings) -> tuple[list[Layer], TrainingSettings, OptimSettings]:
    """Return what is trained, how long and by which optimiser."""
    if hasattr(settings, "downstream"):
        return _video(settings.model), settings.downstream.training, settings.downstream.optim
    return _network(settings.model), settings.training, settings.optim


def _saved_bytes(layers: Iterable[Layer]) -> list[int]:
    """Bytes of each tensor of a state dict."""
    return [
        size for layer in layers for size in (*(_FLOAT_BYTES * count for count in layer.parameters), *layer.buffers)
    ]


def _file_bytes(sizes: Sequence[int]) -> int:
    """Bytes of a file of ``torch.save`` that holds tensors of these sizes."""
    aligned = (-(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES for size in sizes)
    return _BYTES_A_FILE + sum(aligned) + _BYTES_A_TENSOR * len(sizes)


def _network(model: ModelSettings) -> list[Layer]:
    """Layers of everything that is trained, as ``crisscross/methods/crisscross.py`` builds it."""
    heads = [
        layer
        for backbone in (model.video, model.audio)
        for layer in (*_projector(8 * backbone.width, model), *_predictor(model))
    ]
    return [*_video(model), *_audio(model), *heads]


def _video(model: ModelSettings) -> list[Layer]:
    """R(2+1)D, as in ``crisscross/models/r2plus1d.py``."""
    width = model.video.width
    layers = [_convolution(3, width, kernel=3 * 7 * 7), _norm(width)]
    for before, after, strided in _blocks(width, BLOCKS_BY_DEPTH[model.video.depth]):
        for channels, kernel in ((before, 3 * 3), (after, 3), (after, 3 * 3), (after, 3)):  # space, time, space, time
            layers += [_convolution(channels, after, kernel=kernel), _norm(after)]
        if strided:
            layers.append(_convolution(before, after, kernel=1))
    return layers


def _audio(model: ModelSettings) -> list[Layer]:
    """ResNet, as in ``crisscross/models/audio_resnet.py``."""
    width = model.audio.width
    layers = [_convolution(1, width, kernel=7 * 7), _norm(width)]
    for before, after, strided in _blocks(width, model.audio.layers):
        for channels in (before, after):
            layers += [_convolution(channels, after, kernel=3 * 3), _norm(after)]
        if strided:
            layers += [_convolution(before, after, kernel=1), _norm(after)]
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


def _projector(input_dim: int, model: ModelSettings) -> list[Layer]:
    """Linear layers with a normalisation after each, as in ``crisscross/models/heads.py``."""
    head = model.projector
    dims = [input_dim, *[head.hidden_dim] * (head.num_layers - 1), head.output_dim]
    return [layer for before, after in pairwise(dims) for layer in (_linear(before, after), _norm(after))]


def _predictor(model: ModelSettings) -> list[Layer]:
    """A bottleneck of two linear layers with a normalisation between, as in ``crisscross/models/heads.py``."""
    dim, hidden_dim = model.projector.output_dim, model.predictor.hidden_dim
    return [_linear(dim, hidden_dim), _norm(hidden_dim), _linear(hidden_dim, dim)]


def _convolution(before: int, after: int, *, kernel: int) -> Layer:
    return Layer((before * after * kernel,))


def _linear(before: int, after: int) -> Layer:
    return Layer((before * after, after))


def _norm(channels: int) -> Layer:
    """A batch normalisation: weight and bias are trained, mean, variance and number of batches are not."""
    return Layer((channels, channels), (_FLOAT_BYTES * channels, _FLOAT_BYTES * channels, _COUNTER_BYTES))
