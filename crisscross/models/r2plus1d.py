"""The video backbone: R(2+1)D with inner width equal to output width (as in the paper).

It differs from torchvision's ``r2plus1d_18`` (31.5 M parameters) in four ways: the stem is one full 3-D convolution
followed by a max-pool; there are as many channels between a spatial and a temporal convolution as in the block's
output; the residual is added before the last batch normalization; and the residual convolution has no normalization.
Modules have the names of the authors' released weights.

| depth | blocks per stage | parameters (width 64) |
| --- | --- | --- |
| 10 | 1-1-1-1 | 7,015,616 |
| 18 | 2-2-2-2 | 15,379,136 |
| 34 | 3-4-6-3 | 28,861,632 |

No convolution has a bias: with biases, depth 18 would have 15,387,776 parameters, not the paper's 15.38 M.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from crisscross.models.video_base import VideoNetwork


class R2Plus1dBlock(nn.Module):
    """Two factorized convolutions with a residual: ReLU(BN(residual + T(S(T(S(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        """Build a block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output, and of every convolution inside.
            stride: 1 or 2, in time, height and width. The first spatial convolution has the spatial stride and the
                first temporal convolution the temporal stride.
        """
        super().__init__()
        self.spt_conv1 = _spatial_conv(in_channels, out_channels, stride=stride)
        self.spt_bn1 = nn.BatchNorm3d(out_channels)
        self.tmp_conv1 = _temporal_conv(out_channels, out_channels, stride=stride)
        self.tmp_bn1 = nn.BatchNorm3d(out_channels)
        self.spt_conv2 = _spatial_conv(out_channels, out_channels)
        self.spt_bn2 = nn.BatchNorm3d(out_channels)
        self.tmp_conv2 = _temporal_conv(out_channels, out_channels)
        self.out_bn = nn.BatchNorm3d(out_channels)
        # The key res_conv exists only where the shape changes, as in the released state dict.
        self.res_conv = None
        if stride != 1 or in_channels != out_channels:
            self.res_conv = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B, in_channels, T, H, W).

        Returns:
            (B, out_channels, T/stride, H/stride, W/stride), sizes rounded up.
        """
        residual = x if self.res_conv is None else self.res_conv(x)
        x = F.relu(self.spt_bn1(self.spt_conv1(x)))
        x = F.relu(self.tmp_bn1(self.tmp_conv1(x)))
        x = F.relu(self.spt_bn2(self.spt_conv2(x)))
        return F.relu(self.out_bn(self.tmp_conv2(x) + residual))


class VideoBackbone(VideoNetwork):
    """R(2+1)D-10/18/34 without a classifier; the paper uses depth 18 at width 64.

    The last map is T/8 x H/32 x W/32, each rounded up: 1 x 4 x 4 for a clip of 8 x 112 x 112, 1 x 7 x 7 for 8 x 224 x
    224; 32 frames give 4 in time.

    Attributes:
        depth: 10, 18 or 34.
        width: channels of the stem and the first stage; the stages have 1, 2, 4 and 8 times as many.
        feature_dim: channels of the last map, ``8 * width`` (512 in the paper).
        pool: ``"avg"`` (pretraining, linear evaluation) or ``"max"`` (fine-tuning); can be changed later.
    """

    def __init__(self, depth: int = 18, width: int = 64, *, pool: Literal["avg", "max"] = "avg") -> None:
        """Build the backbone with PyTorch's initialization (``initialize`` is reproducible).

        Args:
            depth: 10, 18 or 34.
            width: channels of the stem, at least 1; smaller than 64 for demonstrations.
            pool: the global pooling after the last stage, ``"avg"`` or ``"max"``.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__(pool=pool)
        if depth not in BLOCKS_BY_DEPTH:
            raise ValueError(f"depth={depth!r}: expected one of {sorted(BLOCKS_BY_DEPTH)}; set one of these")
        if width < 1:
            raise ValueError(f"width={width!r}: expected at least 1 (the paper has 64); raise it")
        self.depth = depth
        self.width = width
        self.feature_dim = 8 * width
        self.conv1 = nn.Sequential(
            nn.Conv3d(3, width, kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        blocks = BLOCKS_BY_DEPTH[depth]
        self.conv2x = _stage(width, width, num_blocks=blocks[0], stride=1)
        self.conv3x = _stage(width, 2 * width, num_blocks=blocks[1], stride=2)
        self.conv4x = _stage(2 * width, 4 * width, num_blocks=blocks[2], stride=2)
        self.conv5x = _stage(4 * width, 8 * width, num_blocks=blocks[3], stride=2)

    def _last_map(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.conv1(x), kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        return self.conv5x(self.conv4x(self.conv3x(self.conv2x(x))))

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return f"depth={self.depth}, width={self.width}, pool={self.pool!r}"


def _spatial_conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False)


def _temporal_conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False)


def _stage(in_channels: int, out_channels: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    first = R2Plus1dBlock(in_channels, out_channels, stride=stride)
    rest = [R2Plus1dBlock(out_channels, out_channels) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


BLOCKS_BY_DEPTH: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}
"""Blocks of each stage of the paper's R(2+1)D, by depth."""
