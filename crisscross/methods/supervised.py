"""Supervised pretraining: the video backbone and a linear layer learn the labels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods import register
from crisscross.methods.base import BaseMethod, Views


@register
class Supervised(BaseMethod):
    """Cross-entropy on one view of a clip; no state except the weights.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> F.cross_entropy(logits, labels)  # the mean of log(1 + e^-2) and log 2
        tensor(0.4100)
    """

    num_views = 1
    modalities = "v"

    def __init__(self, model: ModelSettings, clips: DatasetInfo) -> None:
        """Build the video backbone and the linear layer. ``SupervisedSettings`` checks the clips."""
        super().__init__(model)
        self.head = nn.Linear(self.video_backbone.feature_dim, clips.num_classes)

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the cross-entropy and top-1 accuracy of a batch."""
        logits = self.head(self.video_backbone(views.of("video")[0])).float()
        hits = logits.detach().argmax(dim=1) == views.labels
        return F.cross_entropy(logits, views.labels), {"train/top1": hits.float().mean()}
