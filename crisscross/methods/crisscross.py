"""CrissCross: agreement within and across modalities, at the same time and across time (AAAI 2023, section 3).

Two views of a clip give four embeddings: v1, a1, v2, a2. The loss pulls six pairs of them together; each pair loss is
symmetrized, with a stop-gradient on the target:

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
from crisscross.methods import register
from crisscross.methods.base import BaseMethod, Views
from crisscross.models.heads import predictor, projector

LOSS_GROUP = {
    "v1v2": "video",
    "a1a2": "audio",
    "v1a1": "sync",
    "v2a2": "sync",
    "v1a2": "async",
    "v2a1": "async",
}
"""The group of each of the six pair losses; each group has one weight."""


def pair_loss(p_x: torch.Tensor, z_x: torch.Tensor, p_y: torch.Tensor, z_y: torch.Tensor) -> torch.Tensor:
    """Return L_xy, the symmetrized negative cosine similarity, averaged over the batch.

    Args:
        p_x: predictions of x, (B, D).
        z_x: projections of x, (B, D).
        p_y: predictions of y, (B, D).
        z_y: projections of y, (B, D).

    Returns:
        A scalar in [-1, 1]; -1 is perfect agreement.

    Example:
        >>> same, orthogonal = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> pair_loss(same, same, same, same)
        tensor(-1.)
        >>> pair_loss(same, same, orthogonal, same)  # x predicts y, y does not predict x
        tensor(-0.5000)
    """
    one_way = -cosine_similarity(p_x.float(), z_y.detach().float(), dim=-1).mean()
    other_way = -cosine_similarity(p_y.float(), z_x.detach().float(), dim=-1).mean()
    return (one_way + other_way) / 2


def embedding_std(z: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of l2-normalized embeddings, averaged over dimensions.

    It monitors collapse: about 1 / sqrt(D) normally, 0 if every clip has the same embedding. (B, D) -> scalar.
    """
    return normalize(z.detach().float(), dim=-1).std(dim=0, unbiased=False).mean()


@register
class CrissCross(BaseMethod):
    """CrissCross with a weight per group of pair losses.

    A weight of 0 disables a group.
    """

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
        """Build backbones, projectors and predictors. ``CrissCrossSettings`` checks the weights."""
        del clips  # any dataset is valid
        weights = {"video": video_weight, "audio": audio_weight, "sync": sync_weight, "async": async_weight}
        super().__init__(model)
        self.pair_weights = {pair: weights[group] for pair, group in LOSS_GROUP.items() if weights[group] > 0}
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
        """Return the predictors as ``predictor`` and all other parameters as ``base``."""
        predictors = [*self.video_predictor.parameters(), *self.audio_predictor.parameters()]
        chosen = {id(parameter) for parameter in predictors}
        return {"base": [p for p in self.parameters() if id(p) not in chosen], "predictor": predictors}

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean pair loss, each loss, and collapse monitors.

        The mean is weighted. Each view is a separate forward pass, so batch statistics are those of one view (ours, as
        in SimSiam: the paper does not specify this).
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
