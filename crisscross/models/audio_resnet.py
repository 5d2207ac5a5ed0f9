"""The audio backbone: ResNet over a log-mel spectrogram (as in the paper).

ResNet-18 with one input channel: 11,170,240 parameters, the paper's 11.17 M. Modules have the names of the authors'
released weights (``block1`` instead of torchvision's ``layer1``; the stem's layers are numbered). The total stride is
32 in frequency and in time.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a residual."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        """Build a block whose first convolution has ``stride``, 1 or 2."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # The key downsample exists only where the shape changes, as in the released state dict.
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, out_channels, F/stride, T/stride), rounded up."""
        residual = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + residual)


class AudioBackbone(nn.Module):
    """ResNet over spectrograms, without a classifier.

    The paper uses ResNet-18 at width 64. A 2-s spectrogram, 80 x 201, gives a last map of 3 x 7; 5 s, 80 x 501, gives 3
    x 16.

    Attributes:
        width: channels of the stem and the first stage; the stages have 1, 2, 4 and 8 times as many.
        in_channels: channels of the input.
        layers: blocks of each of the four stages.
        feature_dim: channels of the last map, ``8 * width`` (512 in the paper).
    """

    def __init__(self, width: int = 64, *, in_channels: int = 1, layers: Sequence[int] = (2, 2, 2, 2)) -> None:
        """Build the backbone with PyTorch's initialization (``initialize`` is reproducible).

        Args:
            width: channels of the stem, at least 1; smaller than 64 for demonstrations.
            in_channels: channels of the input, 1 for a spectrogram.
            layers: blocks of each of the four stages, each at least 1.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width!r}: expected at least 1 (the paper has 64); raise it")
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels!r}: expected at least 1 (the paper has 1); raise it")
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(
                f"layers={tuple(layers)!r}: expected four numbers of at least 1; (2, 2, 2, 2) is ResNet-18"
            )
        self.width = width
        self.in_channels = in_channels
        self.layers = tuple(layers)
        self.feature_dim = 8 * width
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.block1 = _stage(width, width, num_blocks=layers[0], stride=1)
        self.block2 = _stage(width, 2 * width, num_blocks=layers[1], stride=2)
        self.block3 = _stage(2 * width, 4 * width, num_blocks=layers[2], stride=2)
        self.block4 = _stage(4 * width, 8 * width, num_blocks=layers[3], stride=2)

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map before pooling.

        Args:
            x: normalized log-mel spectrograms, (B, in_channels, F mel bands, T frames).

        Returns:
            (B, feature_dim, F/32, T/32), each rounded up; non-negative.

        Raises:
            ValueError: if ``x`` has another number of dimensions or channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"audio input of shape {tuple(x.shape)}: expected (B, {self.in_channels}, F, T), "
                "a batch of spectrograms; add or move the channel dimension"
            )
        x = F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)
        return self.block4(self.block3(self.block2(self.block1(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms (B, in_channels, F, T) to average-pooled features (B, feature_dim)."""
        return self.feature_map(x).mean(dim=(2, 3))

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return f"width={self.width}, in_channels={self.in_channels}, layers={self.layers}"


def _stage(in_channels: int, out_channels: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride=stride)
    rest = [BasicBlock(out_channels, out_channels) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)
