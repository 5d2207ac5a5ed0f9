"""Features of a frozen backbone: layer and pooling (as in the paper)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crisscross.config.evaluation import FrozenSettings
from crisscross.models.backbones import Backbone, Backbones

MAP_KERNEL, MAP_STRIDE = (1, 3), (1, 2)  # frequency, time (as released)


def feature_of(backbone: Backbone, layer: str, *, normalize: str) -> Callable[[Tensor], Tensor]:
    """Return a function from a backbone's input to features.

    Args:
        backbone: a video or an audio backbone.
        layer: ``pooled``, the global average of the last map; ``max``, its global maximum; ``map``, the audio
            network's last map, max-pooled over time by 3 with stride 2 and flattened (as in the paper: 4,608 values
            for 2 s, 10,752 for 5 s); or a stage, such as ``block3`` or ``conv4x``, averaged over all positions.
        normalize: ``none``; ``last_axis``, which divides by the l2 norm over the last axis before flattening (time for
            a map, as in the paper; all values for a pooled feature); or ``feature``, which divides by the l2 norm
            of the flattened feature.

    Returns:
        A function that returns float32 features (B, D); D depends on the layer.
    """

    def feature(x: Tensor) -> Tensor:
        values = _values(backbone, layer, x)
        if normalize == "last_axis":
            values = F.normalize(values, dim=-1)
        values = values.flatten(1)
        return F.normalize(values, dim=1) if normalize == "feature" else values

    return feature


def feature_extractors(backbones: Backbones, protocol: FrozenSettings) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return a protocol's functions from inputs to features, by stream (``v``, ``a``)."""
    chosen = protocol.features
    layers = {"v": ("video_backbone", chosen.video_layer), "a": ("audio_backbone", chosen.audio_layer)}
    return {
        stream: feature_of(getattr(backbones, layers[stream][0]), layers[stream][1], normalize=chosen.normalise)
        for stream in protocol.streams
    }


def _values(backbone: Backbone, layer: str, x: Tensor) -> Tensor:
    if layer == "pooled":
        return backbone.feature_map(x).mean(dim=tuple(range(2, x.ndim)))
    if layer == "max":
        return backbone.feature_map(x).amax(dim=tuple(range(2, x.ndim)))
    if layer == "map":
        last = backbone.feature_map(x)
        if last.shape[-1] < MAP_KERNEL[1]:
            raise ValueError(
                f"downstream.features.audio_layer=map needs a last map of {MAP_KERNEL[1]} columns or more, it has"
                f" {last.shape[-1]}: raise views.audio.seconds"
            )
        return F.max_pool2d(last, MAP_KERNEL, MAP_STRIDE)
    return _of_stage(backbone, layer, x).mean(dim=tuple(range(2, x.ndim)))


def _of_stage(backbone: Backbone, name: str, x: Tensor) -> Tensor:
    """Return the output of one stage of a backbone."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, inputs
        caught.append(output)

    handle = backbone.get_submodule(name).register_forward_hook(catch)
    try:
        with torch.inference_mode(torch.is_inference_mode_enabled()):
            backbone.feature_map(x)
    finally:
        handle.remove()
    return caught[0]
