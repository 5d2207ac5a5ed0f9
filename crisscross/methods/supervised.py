"""Supervised pretraining: the video backbone and a linear layer on its pooled features learn the labels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods.base import BaseMethod, Views


class Method(BaseMethod):
    """Cross-entropy on one view of a clip. It keeps no state beside its weights."""

    num_views = 1
    modalities = "v"

    def __init__(self, model: ModelSettings, clips: DatasetInfo) -> None:
        """Build the video backbone and the layer; what the clips must be, ``SupervisedSettings`` says."""
        super().__init__(model)
        self.head = nn.Linear(self.video_backbone.feature_dim, clips.num_classes)

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the cross-entropy of a batch, and its top-1."""
        logits = self.head(self.video_backbone(views.of("video")[0])).float()
        hits = logits.detach().argmax(dim=1) == views.labels
        return F.cross_entropy(logits, views.labels), {"train/top1": hits.float().mean()}
