"""How large checkpoints and exported weights will be, told from the config alone. Torch is not imported.

The launch side asks before anything runs whether the disk has room. The tests compare with real files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crisscross.methods.settings import ClipFacts, MethodSettings, modalities_of, settings_of
from crisscross.models.layers import FLOAT_BYTES, Layer, audio_layers, video_layers
from crisscross.models.settings import ModelSettings
from crisscross.settings import DownstreamSettings, PretrainSettings
from crisscross.training.settings import OptimSettings, TrainingSettings

CHECKPOINTS_BESIDE_THE_KEPT = 3
"""The last two (``CheckpointWriter``'s ``keep_last``) and the one that is being written."""

_ALIGNED_BYTES = 64  # torch.save begins every tensor at a multiple of this
_BYTES_A_TENSOR = 300  # its name, place and shape in the archive; measured with PyTorch 2.11: 210 to 320
_BYTES_A_FILE = 4096  # an archive without tensors, the optimiser's settings; measured: 1.3 kB and a few hundred bytes


def method_layers(settings: PretrainSettings, clips: ClipFacts) -> list[Layer]:
    """Return the layers of everything that a pretraining trains and keeps.

    A method that crisscross/methods/settings.py does not know counts as one with both backbones and the heads of
    CrissCross.

    Args:
        settings: the settings of a pretraining.
        clips: what it learns from.
    """
    method = settings_of(settings.method) or MethodSettings(name=settings.method["name"])
    backbones = _backbones(settings.model, method.modalities)
    return [*(layer for layers in backbones for layer in layers), *method.layers(settings.model, clips)]


def checkpoint_bytes(settings: PretrainSettings | DownstreamSettings, clips: ClipFacts | None) -> int:
    """Return the bytes of one checkpoint: weights, statistics of the batch normalisations, the optimiser's moments.

    Where a method leaves a modality untrained, the optimiser keeps nothing for it and the file is smaller. The head of
    a fine-tuning is left out: 51,813 of 15.4 million values for UCF101.

    Args:
        settings: the settings of a pretraining or a fine-tuning.
        clips: what a pretraining learns from; None for a fine-tuning.
    """
    layers, training, optim = _trained(settings, clips)
    sizes = _saved_bytes(layers)
    if training.epochs:  # an optimiser that has taken no step has no moments
        weights = [FLOAT_BYTES * count for layer in layers for count in layer.parameters]
        if optim.name == "adam":  # two moments, and a number of steps for each tensor
            sizes += [*weights, *weights, *[FLOAT_BYTES] * len(weights)]
        elif optim.momentum:
            sizes += weights
    return _file_bytes(sizes)


def backbones_bytes(model: ModelSettings, modalities: str) -> int:
    """Return the bytes of the backbones that a pretraining leaves in the format of released weights.

    Args:
        model: the config's ``model`` node.
        modalities: ``v``, ``a`` or ``av``.
    """
    return sum(_file_bytes(_saved_bytes(layers)) for layers in _backbones(model, modalities))


def checkpoints_bytes(settings: PretrainSettings | DownstreamSettings, clips: ClipFacts | None) -> int:
    """Return the most that a training's checkpoints and exported weights take on disk at a time.

    That is while the last checkpoint is written: those of ``training.keep_epochs`` stay, as do the two before it.
    A kill in the middle of a write leaves a torn file, which the next write clears away: up to one checkpoint more.

    Args:
        settings: the settings of a pretraining or a fine-tuning.
        clips: what a pretraining learns from; None for a fine-tuning.
    """
    layers, training, _ = _trained(settings, clips)
    kept = len({epoch for epoch in training.keep_epochs if 0 < epoch < training.epochs})
    num = kept + CHECKPOINTS_BESIDE_THE_KEPT if training.epochs else 1
    if isinstance(settings, DownstreamSettings):
        exported = _file_bytes(_saved_bytes(layers))
    else:
        exported = backbones_bytes(settings.model, modalities_of(settings.method))
    return num * checkpoint_bytes(settings, clips) + exported


def _trained(
    settings: PretrainSettings | DownstreamSettings, clips: ClipFacts | None
) -> tuple[list[Layer], TrainingSettings, OptimSettings]:
    """Return what is trained, how long and by which optimiser."""
    if isinstance(settings, DownstreamSettings):
        return video_layers(settings.model.video), settings.finetuning.training, settings.finetuning.optim
    assert clips is not None  # a pretraining learns from some
    return method_layers(settings, clips), settings.training, settings.optim


def _backbones(model: ModelSettings, modalities: str) -> list[list[Layer]]:
    layers = {"v": lambda: video_layers(model.video), "a": lambda: audio_layers(model.audio)}
    return [layers[letter]() for letter in modalities]


def _saved_bytes(layers: Iterable[Layer]) -> list[int]:
    """Bytes of each tensor of a state dict."""
    return [size for layer in layers for size in (*(FLOAT_BYTES * count for count in layer.parameters), *layer.buffers)]


def _file_bytes(sizes: Sequence[int]) -> int:
    """Bytes of a file of ``torch.save`` that holds tensors of these sizes."""
    aligned = (-(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES for size in sizes)
    return _BYTES_A_FILE + sum(aligned) + _BYTES_A_TENSOR * len(sizes)
