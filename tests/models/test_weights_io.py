"""Weights files: a round trip, and one line for every invalid file."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from crisscross.models import weights_io
from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.r2plus1d import VideoBackbone
from crisscross.models.weights_io import export_backbone, load_audio_backbone, load_video_backbone


class Exploit:
    """A pickle that creates a folder if it is loaded without ``weights_only``."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def moved(backbone: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return a backbone with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    backbone.train()(torch.randn(shape))
    return backbone.eval()


@pytest.mark.parametrize(("depth", "width"), [(10, 4), (18, 6), (34, 2)])
def test_video_round_trip(tmp_path: Path, depth: int, width: int) -> None:
    backbone = moved(VideoBackbone(depth, width), (4, 3, 4, 32, 32))
    export_backbone(backbone, tmp_path / "new" / "video.pt")
    before = torch.get_rng_state()
    loaded = load_video_backbone(tmp_path / "new" / "video.pt", pool="max")
    assert torch.equal(before, torch.get_rng_state())
    assert (loaded.depth, loaded.width, loaded.pool, loaded.training) == (depth, width, "max", True)
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    x = torch.randn(2, 3, 4, 32, 32)
    loaded.pool = "avg"
    assert torch.equal(loaded.eval()(x), backbone(x))


@pytest.mark.parametrize(("in_channels", "layers"), [(1, (2, 2, 2, 2)), (2, (1, 2, 1, 3))])
def test_audio_round_trip(tmp_path: Path, in_channels: int, layers: tuple[int, ...]) -> None:
    backbone = moved(AudioBackbone(4, in_channels=in_channels, layers=layers), (4, in_channels, 40, 40))
    export_backbone(backbone, tmp_path / "audio.pt")
    loaded = load_audio_backbone(tmp_path / "audio.pt")
    assert (loaded.in_channels, loaded.layers) == (in_channels, layers)
    x = torch.randn(2, in_channels, 40, 40)
    assert torch.equal(loaded.eval()(x), backbone(x))


def test_loaded_weights_can_be_trained(tmp_path: Path) -> None:
    export_backbone(AudioBackbone(2), tmp_path / "audio.pt")
    loaded = load_audio_backbone(tmp_path / "audio.pt")
    loaded(torch.randn(2, 1, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_file_is_a_plain_state_dict_in_single_precision(tmp_path: Path) -> None:
    backbone = AudioBackbone(4).half()
    path = tmp_path / "audio.pt"
    export_backbone(backbone, path)
    content = torch.load(path, weights_only=True)
    assert type(content) is dict
    assert list(content) == list(backbone.state_dict())
    assert {value.dtype for name, value in content.items() if "tracked" not in name} == {torch.float32}
    assert all(not value.requires_grad for value in content.values())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audio.pt"
    export_backbone(AudioBackbone(2), path)
    before = path.read_bytes()

    def torn(state: object, file) -> None:
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights_io.torch, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        export_backbone(AudioBackbone(4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prefix", ["module.", "backbone."])
def test_one_prefix_on_every_key_is_tolerated(tmp_path: Path, prefix: str) -> None:
    state = AudioBackbone(2).state_dict()
    path = save({prefix + name: value for name, value in state.items()}, tmp_path / "audio.pt")
    loaded = load_audio_backbone(path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())


def test_old_and_ordered_files_load(tmp_path: Path) -> None:
    """A file of an early PyTorch: no batch counters, no zip archive."""
    state = collections.OrderedDict(
        (name, value) for name, value in VideoBackbone(10, 2).state_dict().items() if "tracked" not in name
    )
    torch.save(state, tmp_path / "video.pt", _use_new_zipfile_serialization=False)
    loaded = load_video_backbone(tmp_path / "video.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())
    assert loaded["conv1.1.num_batches_tracked"].item() == 0


def line(function, path: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        function(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in line(load_video_backbone, tmp_path / "none.pt", FileNotFoundError)
    assert "no such file" in line(load_audio_backbone, tmp_path, FileNotFoundError)


def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made-by-exploit"
    path = save({"conv1.0.weight": Exploit(target)}, tmp_path / "bad.pt")
    message = line(load_video_backbone, path)
    assert "refused, it holds more than tensors (posix.mkdir)" in message
    assert "weights_only" not in message  # PyTorch's text advises to disable it
    assert not target.exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    path = save(AudioBackbone(2), tmp_path / "model.pt")
    assert "refused, it holds more than tensors" in line(load_audio_backbone, path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<!DOCTYPE html>", b"\x80\x02}q\x00."])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.pt"
    path.write_bytes(content)
    assert "PyTorch file" in line(load_video_backbone, path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "audio.pt"
    for zipped in (True, False):
        torch.save(AudioBackbone(2).state_dict(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        message = line(load_audio_backbone, path)
        assert "damaged" in message


def test_a_failing_disk_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_backbone(AudioBackbone(2), tmp_path / "audio.pt")

    def failing(*args: object, **settings: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(weights_io.torch, "load", failing)
    with pytest.raises(OSError, match="Input/output error"):
        load_audio_backbone(tmp_path / "audio.pt")


def test_not_a_state_dict(tmp_path: Path) -> None:
    state = AudioBackbone(2).state_dict()
    cases = [
        (torch.ones(2), "holds a Tensor; expected a state dict"),
        ({}, "holds an empty dict; expected a state dict"),
        ({"state_dict": dict(state), "epoch": 3}, "state_dict, epoch not a tensor"),
        (nn.Linear(2, 2).state_dict(), "not a backbone's state dict, its keys begin with weight, bias"),
        ({"line\nbreak": torch.ones(2)}, "its keys begin with 'line\\nbreak'"),
        ({"conv1.0.weight": torch.ones(2)}, "not a backbone's state dict"),
    ]
    for content, expected in cases:
        assert expected in line(load_audio_backbone, save(content, tmp_path / "x.pt"))


def test_the_other_modality(tmp_path: Path) -> None:
    export_backbone(VideoBackbone(10, 2), tmp_path / "video.pt")
    export_backbone(AudioBackbone(2), tmp_path / "audio.pt")
    assert "holds video weights; expected audio weights" in line(load_audio_backbone, tmp_path / "video.pt")
    assert "holds audio weights; expected video weights" in line(load_video_backbone, tmp_path / "audio.pt")


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = VideoBackbone(10, 2).state_dict()
    missing = [f"conv{stage}x.0.out_bn.weight" for stage in (2, 3, 4, 5)]
    content = {name: value for name, value in state.items() if name not in missing}
    message = line(load_video_backbone, save({**content, "fc.weight": torch.ones(1)}, tmp_path / "x.pt"))
    assert f"missing {', '.join(missing[:3])} and 1 more; unexpected fc.weight; expected exactly" in message


def test_wrong_shapes(tmp_path: Path) -> None:
    state = VideoBackbone(10, 2).state_dict()
    path = tmp_path / "x.pt"
    wrong = {**state, "conv2x.0.spt_conv1.weight": torch.ones(3, 2, 1, 3, 3)}
    message = line(load_video_backbone, save(wrong, path))
    assert "conv2x.0.spt_conv1.weight has shape (3, 2, 1, 3, 3); expected (2, 2, 1, 3, 3) at width 2" in message
    for stem in (torch.ones(2, 3, 7, 7), torch.ones(0, 3, 3, 7, 7), torch.tensor(1.0)):
        message = line(load_video_backbone, save({**state, "conv1.0.weight": stem}, path))
        assert "conv1.0.weight has shape" in message
    # A stem of a huge network is an error before anything of that size is allocated.
    wide = {**state, "conv1.0.weight": torch.ones(1).expand(100_000, 3, 3, 7, 7)}
    assert "has shape" in line(load_video_backbone, save(wide, path))


def test_unknown_depths(tmp_path: Path) -> None:
    state = VideoBackbone(18, 2).state_dict()
    content = {name: value for name, value in state.items() if not name.startswith("conv4x.1.")}
    message = line(load_video_backbone, save(content, tmp_path / "x.pt"))
    assert "has 2-2-1-2 blocks" in message
    assert "1-1-1-1 (depth 10) or 2-2-2-2 (depth 18) or 3-4-6-3 (depth 34)" in message
    audio = {name: value for name, value in AudioBackbone(2).state_dict().items() if "block3" not in name}
    assert "has 2-2-0-2 blocks" in line(load_audio_backbone, save(audio, tmp_path / "y.pt"))


def test_export_takes_backbones_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot export a DataParallel: expected a VideoBackbone or an"):
        export_backbone(nn.DataParallel(AudioBackbone(2)), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("zipped", [True, False])
def test_no_damage_escapes_as_another_error(tmp_path: Path, zipped: bool) -> None:
    """Wherever a byte is wrong, the result is a backbone or a one-line ValueError."""
    path = tmp_path / "audio.pt"
    torch.save(AudioBackbone(1).state_dict(), path, _use_new_zipfile_serialization=zipped)
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    for cut in generator.integers(4, len(good), 40):
        path.write_bytes(good[:cut])
        line(load_audio_backbone, path)
    for place in generator.integers(2, min(len(good), 4000), 150):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        with contextlib.suppress(ValueError):  # a wrong byte in a tensor may not be detected
            load_audio_backbone(path)
