"""CrissCross: agreement within and across modalities, at the same time and across time (AAAI 2023, section 3).

Two views of a clip give four embeddings: v1, a1, v2, a2. Six pairs of them are pulled together, each symmetrised and
each with the gradient stopped on the target's side:

    L_xy = D(p_x, z_y) / 2 + D(p_y, z_x) / 2,   D(p, z) = -cosine(p, stopgrad(z))
"""

from __future__ import annotations

import functools
import operator

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods.base import BaseMethod, Views
from crisscross.models.heads import predictor, projector

FAMILIES = {
    "v1v2": "video",
    "a1a2": "audio",
    "v1a1": "sync",
    "v2a2": "sync",
    "v1a2": "async",
    "v2a1": "async",
}
"""The six pairs and the weight that each belongs to."""


def pair_loss(p_x: torch.Tensor, z_x: torch.Tensor, p_y: torch.Tensor, z_y: torch.Tensor) -> torch.Tensor:
    """Return L_xy, the symmetrised negative cosine similarity of a pair, averaged over the batch.

    Args:
        p_x: predictions of x, (B, D).
        z_x: projections of x, (B, D).
        p_y: predictions of y, (B, D).
        z_y: projections of y, (B, D).

    Returns:
        A scalar in [-1, 1]; -1 is perfect agreement.
    """
    one_way = -cosine_similarity(p_x.float(), z_y.detach().float(), dim=-1).mean()
    other_way = -cosine_similarity(p_y.float(), z_x.detach().float(), dim=-1).mean()
    return (one_way + other_way) / 2


def embedding_std(z: torch.Tensor) -> torch.Tensor:
    """Return the collapse monitor: standard deviation of the l2-normalised z per dimension, averaged.

    About 1 / sqrt(D) when healthy, 0 when every clip has the same embedding. (B, D) -> scalar.
    """
    return normalize(z.detach().float(), dim=-1).std(dim=0, unbiased=False).mean()


class Method(BaseMethod):
    """CrissCross with a weight for each family of pair losses; a weight of 0 switches the family off."""

    video_predictor: nn.Sequential
    audio_predictor: nn.Sequential

    def __init__(
        self,
        model: ModelSettings,
        clips: DatasetInfo,
        *,
        video_weight: float,
        audio_weight: float,
        sync_weight: float,
        async_weight: float,
    ) -> None:
        """Build backbones, projectors and predictors. What the weights may be, ``CrissCrossSettings`` says."""
        del clips  # any will do
        weights = {"video": video_weight, "audio": audio_weight, "sync": sync_weight, "async": async_weight}
        super().__init__(model)
        self.pair_weights = {pair: weights[family] for pair, family in FAMILIES.items() if weights[family] > 0}
        self._embeddings = sorted({name for pair in self.pair_weights for name in (pair[:2], pair[2:])})
        self.uses_all_parameters = {name[0] for name in self._embeddings} == {"a", "v"}
        head = model.projector
        for modality, backbone in (("video", self.video_backbone), ("audio", self.audio_backbone)):
            projecting = projector(
                backbone.feature_dim,
                hidden_dim=head.hidden_dim,
                output_dim=head.output_dim,
                num_layers=head.num_layers,
            )
            self.add_module(f"{modality}_projector", projecting)
            self.add_module(f"{modality}_predictor", predictor(head.output_dim, hidden_dim=model.predictor.hidden_dim))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Predictors keep a constant rate of their own; everything else follows ``base``."""
        predictors = [*self.video_predictor.parameters(), *self.audio_predictor.parameters()]
        chosen = {id(parameter) for parameter in predictors}
        return {"base": [p for p in self.parameters() if id(p) not in chosen], "predictor": predictors}

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted mean of the pair losses, each of them, and the collapse monitors.

        Each view passes through the network by itself, so batch statistics are those of one view (as in SimSiam;
        the paper does not say).
        """
        z: dict[str, torch.Tensor] = {}
        p: dict[str, torch.Tensor] = {}
        for name in self._embeddings:
            modality = "video" if name[0] == "v" else "audio"
            features = self.backbone(modality)(views.of(modality)[int(name[1]) - 1])
            z[name] = self.get_submodule(f"{modality}_projector")(features)
            p[name] = self.get_submodule(f"{modality}_predictor")(z[name])
        losses = {pair: pair_loss(p[pair[:2]], z[pair[:2]], p[pair[2:]], z[pair[2:]]) for pair in self.pair_weights}
        weighted = (self.pair_weights[pair] * loss for pair, loss in losses.items())
        total = functools.reduce(operator.add, weighted) / len(losses)
        metrics = {f"loss/{pair}": loss.detach() for pair, loss in losses.items()}
        for short, modality in (("v1", "video"), ("a1", "audio")):
            if short in z:
                metrics[f"collapse/{modality}_std"] = embedding_std(z[short])
        return total, metrics
