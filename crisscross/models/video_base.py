"""The interface of video backbones: named stages, a last map, and global pooling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

POOLS = ("avg", "max")


class VideoNetwork(nn.Module, ABC):
    """A video backbone without a classifier.

    Its four stages are ``conv2x`` to ``conv5x``, as in the paper.

    Attributes:
        feature_dim: channels of the last map.
        pool: ``"avg"`` (pretraining, linear evaluation) or ``"max"`` (fine-tuning); can be changed later.
    """

    feature_dim: int

    def __init__(self, *, pool: Literal["avg", "max"]) -> None:
        """Set the pooling.

        Raises:
            ValueError: if there is no such pooling.
        """
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: expected one of {list(POOLS)}; set one of these")
        self.pool = pool

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map before pooling.

        Args:
            x: normalized frames, (B, 3, T, H, W).

        Returns:
            (B, feature_dim, T', H', W'), non-negative; T', H' and W' depend on the network.

        Raises:
            ValueError: if ``x`` has another number of dimensions or channels.
        """
        if x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(
                f"video input of shape {tuple(x.shape)}: expected (B, 3, T, H, W); move the colors to dimension 1"
            )
        return self._last_map(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized frames to pooled features.

        Args:
            x: (B, 3, T, H, W).

        Returns:
            (B, feature_dim).
        """
        features = self.feature_map(x)
        if self.pool == "max":
            return features.amax(dim=(2, 3, 4))
        return features.mean(dim=(2, 3, 4))

    @abstractmethod
    def _last_map(self, x: Tensor) -> Tensor: ...
