"""Backbones and heads: the paper's parameter counts, shapes, names, and independent implementations."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crisscross.models.audio_resnet import AudioBackbone, BasicBlock
from crisscross.models.heads import predictor, projector
from crisscross.models.r2plus1d import R2Plus1dBlock, VideoBackbone

VIDEO_KEY = re.compile(
    r"(conv1\.[01]|conv[2345]x\.[01]\."
    r"(spt_conv1|spt_bn1|tmp_conv1|tmp_bn1|spt_conv2|spt_bn2|tmp_conv2|out_bn|res_conv))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
AUDIO_KEY = re.compile(
    r"(conv1\.[01]|block[1234]\.[01]\.(conv1|bn1|conv2|bn2|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def printed(number: int) -> str:
    return f"{number / 1e6:.2f}"


def test_parameter_counts_are_the_papers() -> None:
    video, audio = VideoBackbone(), AudioBackbone()
    heads = [head for _ in range(2) for head in (projector(512), predictor(2048))]
    assert printed(count(video)) == "15.38"
    assert printed(count(audio)) == "11.17"
    assert printed(count(video, audio, *heads)) == "49.66"
    assert f"{count(video) / 1e6:.1f}" == "15.4"  # as Table 5 rounds it
    assert (count(video), count(audio)) == (15_379_136, 11_170_240)
    assert (count(heads[0]), count(heads[1])) == (9_455_616, 2_100_736)
    assert count(video, audio, *heads) == 49_662_080


@pytest.mark.parametrize(("depth", "parameters"), [(10, 7_015_616), (34, 28_861_632)])
def test_other_depths(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(VideoBackbone(depth)) == parameters


@pytest.mark.slow  # importing torchvision takes most of it
def test_audio_backbone_is_torchvisions_resnet18_with_one_channel() -> None:
    torchvision = pytest.importorskip("torchvision")
    reference = torchvision.models.resnet18(num_classes=1)
    reference.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    reference.fc = nn.Identity()
    ours = AudioBackbone()
    # Same order of modules, other names.
    values = list(reference.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 1, 80, 101)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_state_dict_keys_are_the_released_ones() -> None:
    with torch.device("meta"):
        video, audio = VideoBackbone().state_dict(), AudioBackbone().state_dict()
    assert [name for name in video if not VIDEO_KEY.fullmatch(name)] == []
    assert [name for name in audio if not AUDIO_KEY.fullmatch(name)] == []
    assert [name for name in video if "res_conv" in name] == [f"conv{stage}x.0.res_conv.weight" for stage in (3, 4, 5)]
    assert [name for name in audio if "downsample.0" in name] == [
        f"block{stage}.0.downsample.0.weight" for stage in (2, 3, 4)
    ]
    assert not [name for name in [*video, *audio] if name.endswith("bias") and "conv1.0" in name]


def reference_video(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute depth 10 from the paper and the state dict alone, in eval mode."""

    def bn(x: torch.Tensor, name: str) -> torch.Tensor:
        shape = (1, -1, 1, 1, 1)
        scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"].view(shape)) * scale.view(shape) + state[f"{name}.bias"].view(shape)

    x = F.conv3d(x, state["conv1.0.weight"], stride=(1, 2, 2), padding=(1, 3, 3))
    x = F.max_pool3d(F.relu(bn(x, "conv1.1")), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage in (2, 3, 4, 5):
        block, stride = f"conv{stage}x.0", 1 if stage == 2 else 2
        residual = x if stage == 2 else F.conv3d(x, state[f"{block}.res_conv.weight"], stride=stride)
        x = F.conv3d(x, state[f"{block}.spt_conv1.weight"], stride=(1, stride, stride), padding=(0, 1, 1))
        x = F.relu(bn(x, f"{block}.spt_bn1"))
        x = F.conv3d(x, state[f"{block}.tmp_conv1.weight"], stride=(stride, 1, 1), padding=(1, 0, 0))
        x = F.relu(bn(x, f"{block}.tmp_bn1"))
        x = F.relu(bn(F.conv3d(x, state[f"{block}.spt_conv2.weight"], padding=(0, 1, 1)), f"{block}.spt_bn2"))
        x = F.conv3d(x, state[f"{block}.tmp_conv2.weight"], padding=(1, 0, 0))
        x = F.relu(bn(x + residual, f"{block}.out_bn"))
    return x


def test_video_backbone_equals_the_written_out_network() -> None:
    torch.manual_seed(0)
    backbone = VideoBackbone(10, 4)
    backbone(torch.randn(4, 3, 8, 32, 32))  # moves the running statistics off 0 and 1
    for parameter in backbone.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    backbone.eval()
    x = torch.randn(2, 3, 8, 32, 32)
    expected = reference_video(backbone.state_dict(), x)
    torch.testing.assert_close(backbone.feature_map(x), expected)
    torch.testing.assert_close(backbone(x), expected.mean(dim=(2, 3, 4)))
    backbone.pool = "max"
    torch.testing.assert_close(backbone(x), F.adaptive_max_pool3d(expected, 1).flatten(1))


@pytest.mark.parametrize(
    ("frames", "size", "expected"),
    [
        (8, 112, (1, 4, 4)),
        (8, 224, (1, 7, 7)),
        (32, 112, (4, 4, 4)),
        (32, 224, (4, 7, 7)),
        (9, 33, (2, 2, 2)),
    ],
)
def test_video_map_shapes(frames: int, size: int, expected: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = VideoBackbone()
        x = torch.empty(2, 3, frames, size, size)
        assert backbone.feature_map(x).shape == (2, 512, *expected)
        assert backbone(x).shape == (2, 512)


@pytest.mark.parametrize(("frames", "expected"), [(101, (3, 4)), (201, (3, 7)), (501, (3, 16))])
def test_audio_map_shapes(frames: int, expected: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = AudioBackbone()
        x = torch.empty(2, 1, 80, frames)
        assert backbone.feature_map(x).shape == (2, 512, *expected)
        assert backbone(x).shape == (2, 512)


@pytest.mark.parametrize(("seconds", "values"), [(1, 1_536), (2, 4_608), (5, 10_752)])
def test_audio_map_gives_the_downstream_feature_lengths(seconds: int, values: int) -> None:
    """As in the paper: max-pool kernel (1, 3) stride (1, 2), then flattened."""
    with torch.device("meta"):
        features = AudioBackbone().feature_map(torch.empty(1, 1, 80, 100 * seconds + 1))
        assert F.max_pool2d(features, (1, 3), (1, 2)).numel() == values


@pytest.mark.slow
def test_full_size_video_step() -> None:
    torch.manual_seed(0)
    backbone = VideoBackbone()
    features = backbone(torch.randn(2, 3, 8, 112, 112))
    assert features.shape == (2, 512)
    features.square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("depth", [10, 18])
def test_width_scales_every_layer(depth: int) -> None:
    backbone = VideoBackbone(depth, 4)
    assert backbone.feature_dim == 32
    assert backbone(torch.randn(2, 3, 4, 16, 16)).shape == (2, 32)
    assert AudioBackbone(4)(torch.randn(2, 1, 16, 16)).shape == (2, 32)


def test_blocks_keep_their_input() -> None:
    """No operation may be in place on the residual."""
    for block, shape in ((R2Plus1dBlock(4, 4), (2, 4, 2, 4, 4)), (BasicBlock(4, 4), (2, 4, 4, 4))):
        x = torch.randn(shape)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


def test_heads_have_the_papers_layers() -> None:
    kinds = [type(layer).__name__ for layer in projector(8, hidden_dim=16, output_dim=4)]
    assert kinds == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
    ]
    assert [type(layer).__name__ for layer in predictor(8, hidden_dim=4)] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    x = torch.randn(3, 8)
    assert projector(8, hidden_dim=16, output_dim=4)(x).shape == (3, 4)
    assert projector(8, num_layers=1, output_dim=5)(x).shape == (3, 5)
    assert predictor(8, hidden_dim=4)(x).shape == (3, 8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VideoBackbone(50), "depth=50: expected one of [10, 18, 34]"),
        (lambda: VideoBackbone(10, 0), "width=0: expected at least 1"),
        (lambda: VideoBackbone(10, 4, pool="sum"), "pool='sum': expected one of ['avg', 'max']"),
        (lambda: AudioBackbone(0), "width=0: expected at least 1"),
        (lambda: AudioBackbone(4, in_channels=0), "in_channels=0: expected at least 1"),
        (lambda: AudioBackbone(4, layers=(2, 2)), "layers=(2, 2): expected four numbers"),
        (lambda: projector(8, num_layers=0), "num_layers=0: expected at least 1"),
        (lambda: predictor(8, hidden_dim=0), "hidden_dim=0: expected at least 1"),
        (lambda: VideoBackbone(10, 4)(torch.zeros(2, 8, 3, 16, 16)), "expected (B, 3, T, H, W)"),
        (lambda: AudioBackbone(4)(torch.zeros(2, 80, 201)), "expected (B, 1, F, T)"),
    ],
)
def test_impossible_settings_are_explained(build, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build()
    assert "\n" not in str(caught.value)
