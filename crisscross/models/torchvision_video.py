"""torchvision's video networks as backbones: the wider R(2+1)D-18 and the 3D-ResNet18 of Table 5.

| name | Table 5 | parameters with torchvision's layer of 400 classes | without, as here |
| --- | --- | --- | --- |
| r2plus1d_18 | 31.5 M | 31,505,325 | 31,300,125 |
| r3d_18 | 33.4 M | 33,371,472 | 33,166,272 |

(The paper's own 15.4 M are without a classifier.) Their stem has no max-pool, so the maps are twice as high and wide as
those of the paper's network. The tensors have torchvision's names, so its checkpoints load.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from crisscross.models.video_base import VideoNetwork


class TorchvisionBackbone(VideoNetwork):
    """A video network of torchvision without its classifier.

    The last map is 1 x 7 x 7 for a clip of 8 x 112 x 112, and 1 x 14 x 14 for 8 x 224 x 224.

    Attributes:
        architecture: name in ``torchvision.models.video``.
    """

    feature_dim = 512

    def __init__(self, architecture: Literal["r2plus1d_18", "r3d_18"], *, pool: Literal["avg", "max"] = "avg") -> None:
        """Build the backbone with torchvision's initialization (``initialize`` is reproducible).

        Args:
            architecture: name in ``torchvision.models.video``.
            pool: the global pooling after the last stage, ``"avg"`` or ``"max"``.

        Raises:
            ValueError: if there is no such pooling.
        """
        super().__init__(pool=pool)
        from torchvision.models import video  # type: ignore[import-untyped]  # here: it takes a second, and few use it

        network = getattr(video, architecture)(num_classes=1)
        self.architecture = architecture
        self.stem = network.stem
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            network.layer1,
            network.layer2,
            network.layer3,
            network.layer4,
        )

    @property
    def conv2x(self) -> nn.Module:
        """The first stage, under the paper's name."""
        return self.layer1

    @property
    def conv3x(self) -> nn.Module:
        """The second stage."""
        return self.layer2

    @property
    def conv4x(self) -> nn.Module:
        """The third stage."""
        return self.layer3

    @property
    def conv5x(self) -> nn.Module:
        """The last stage."""
        return self.layer4

    def _last_map(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return f"torchvision={self.architecture}, pool={self.pool!r}"
