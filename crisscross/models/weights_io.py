"""The authors' released weights in, ours out: one file a modality, a plain state dict of the backbone.

torchvision's video networks come and go under torchvision's own names; of its checkpoints the classifier, ``fc``, is
left behind.

Files are read with ``weights_only=True``: tensors come in, code does not. Depth and width are read off the
file. One prefix is tolerated when every key carries it, ``module.`` or ``backbone.``, which wrappers leave
behind; nothing else is renamed or dropped. The only keys that may be missing are the normalisations'
``num_batches_tracked``, which files of PyTorch before 0.4.1 lack and which no result depends on.
"""

from __future__ import annotations

import errno
import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from crisscross.models.audio_resnet import AudioBackbone
from crisscross.models.r2plus1d import BLOCKS_BY_DEPTH, VideoBackbone
from crisscross.models.torchvision_video import TorchvisionBackbone
from crisscross.models.video_base import VideoNetwork
from crisscross.utils.files import write_atomically

_PREFIXES = ("module.", "backbone.")
_VIDEO_STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
_AUDIO_STAGES = ("block1", "block2", "block3", "block4")
_TORCHVISION_STEM = "stem.0.weight"
_TORCHVISION_CLASSIFIER = ("fc.weight", "fc.bias")
_NUM_NAMES_SHOWN = 3
_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # torch.save's zip archive, and the pickle it wrote before 1.6

# What PyTorch's reader raises, besides OSError, on a file whose bytes make no sense to it.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

Backbone = TypeVar("Backbone", VideoBackbone, TorchvisionBackbone, AudioBackbone)


def load_video_backbone(path: str | Path, *, pool: Literal["avg", "max"] = "avg") -> VideoNetwork:
    """Read a video backbone: the authors', one of ours, or one of torchvision's.

    Args:
        path: the file.
        pool: the backbone's global pooling, which is not part of the file.

    Returns:
        The backbone in training mode, on the CPU, in single precision.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a video backbone's state dict; one line with the reason.
    """
    path = Path(path)
    state = _read_state(path)
    if _is_torchvision(state):
        return _fill(_empty_torchvision(state, pool=pool), _without_classifier(state), path=path)
    stem = _stem_weight(path, state, modality="video")
    num_blocks = _count_blocks(state, _VIDEO_STAGES)
    depths = [depth for depth, blocks in BLOCKS_BY_DEPTH.items() if blocks == num_blocks]
    if not depths:
        raise ValueError(
            f"{path}: has {_dashed(num_blocks)} blocks in the stages {', '.join(_VIDEO_STAGES)}; expected "
            + " or ".join(f"{_dashed(blocks)} (depth {depth})" for depth, blocks in BLOCKS_BY_DEPTH.items())
            + "; check that the file is complete"
        )
    with torch.device("meta"):
        backbone = VideoBackbone(depths[0], stem.shape[0], pool=pool)
    return _fill(backbone, state, path=path)


def load_audio_backbone(path: str | Path) -> AudioBackbone:
    """Read an audio backbone, the authors' or one of ours.

    Args:
        path: the file.

    Returns:
        The backbone in training mode, on the CPU, in single precision.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an audio backbone's state dict; one line with the reason.
    """
    path = Path(path)
    state = _read_state(path)
    stem = _stem_weight(path, state, modality="audio")
    num_blocks = _count_blocks(state, _AUDIO_STAGES)
    if min(num_blocks) < 1:
        raise ValueError(
            f"{path}: has {_dashed(num_blocks)} blocks in the stages {', '.join(_AUDIO_STAGES)}; expected at "
            "least 1 in each (2-2-2-2 is ResNet-18); check that the file is complete"
        )
    with torch.device("meta"):
        backbone = AudioBackbone(stem.shape[0], in_channels=stem.shape[1], layers=num_blocks)
    return _fill(backbone, state, path=path)


def export_backbone(backbone: VideoNetwork | AudioBackbone, path: str | Path) -> None:
    """Write a backbone as the authors release theirs: a plain state dict on the CPU in single precision.

    The file appears whole or not at all: it is written beside, flushed to disk and renamed.

    Args:
        backbone: unwrapped (pass ``model.module`` of a ``DistributedDataParallel``).
        path: the file to write; an existing one is replaced. Its folder is made if need be.

    Raises:
        ValueError: ``backbone`` is something else.
    """
    if not isinstance(backbone, (VideoNetwork, AudioBackbone)):
        raise ValueError(
            f"cannot export a {type(backbone).__name__}: expected a VideoBackbone or an AudioBackbone; unwrap it first"
        )
    state = {
        # A copy, so that a view does not drag its whole storage into the file.
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in backbone.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a file and return its state dict, without the tolerated prefix."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a backbone's state dict")
    content = _read_content(path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path}: holds {_describe(content)}; expected a state dict, names with their tensors; "
            "save model.state_dict()"
        )
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(
            f"{path}: {_list_names(strangers)} not a tensor; expected a backbone's plain state dict; "
            "save that part of the file by itself"
        )
    return _without_prefix({str(key): value for key, value in content.items()})


def _read_content(path: Path) -> object:
    """Read whatever the file holds. PyTorch's own messages are left out: they advise to trust the file."""
    with path.open("rb") as file:
        is_pytorch_file = file.read(4).startswith(_MAGIC)
    if is_pytorch_file:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r"(?:GLOBAL|type) ([\w.]+)", str(error))
            reason = f"holds more than tensors ({refused[1]})" if refused else "is damaged or holds code"
            raise ValueError(
                f"{path}: refused, it {reason}; expected a plain state dict; "
                "save model.state_dict() where the file comes from"
            ) from error
        except (OSError, *_DAMAGE) as error:
            # PyTorch reports an archive cut short as "invalid argument"; a failing disk is another matter.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            reason = f"damaged or cut short ({type(error).__name__})"
            raise ValueError(f"{path}: {reason}; expected a PyTorch file; fetch it again") from error
    raise ValueError(f"{path}: not a PyTorch file; expected a backbone's state dict; give that file")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _stem_weight(path: Path, state: Mapping[str, Tensor], *, modality: str) -> Tensor:
    """Return the stem's convolution, after making sure that the file is of the right modality."""
    found = _modality(state)
    if found is None:
        raise ValueError(
            f"{path}: not a backbone's state dict, its keys begin with {_list_names(list(state))}; expected "
            "conv1.0.weight and conv2x.0... (video) or block1.0... (audio); give the backbone's file"
        )
    if found != modality:
        raise ValueError(
            f"{path}: holds {found} weights; expected {modality} weights; "
            f"give the {modality} file or use load_{found}_backbone"
        )
    stem = state["conv1.0.weight"]
    num_dimensions = 5 if modality == "video" else 4
    if stem.ndim != num_dimensions or 0 in stem.shape:
        raise ValueError(
            f"{path}: conv1.0.weight has shape {tuple(stem.shape)}; expected {num_dimensions} dimensions, "
            "none 0; check that the file holds this architecture"
        )
    return stem


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return _TORCHVISION_STEM in state and any(name.startswith("layer1.") for name in state)


def _empty_torchvision(state: Mapping[str, Tensor], *, pool: Literal["avg", "max"]) -> TorchvisionBackbone:
    """Return a network on the meta device; a factorised stem, two convolutions, tells R(2+1)D."""
    with torch.device("meta"):
        return TorchvisionBackbone("r2plus1d_18" if "stem.3.weight" in state else "r3d_18", pool=pool)


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in _TORCHVISION_CLASSIFIER}


def _modality(state: Mapping[str, Tensor]) -> str | None:
    if _is_torchvision(state):
        return "video"
    if "conv1.0.weight" not in state:
        return None
    if any(name.startswith(_VIDEO_STAGES) for name in state):
        return "video"
    if any(name.startswith(_AUDIO_STAGES) for name in state):
        return "audio"
    return None


def _count_blocks(state: Mapping[str, Tensor], stages: Sequence[str]) -> tuple[int, ...]:
    """Count the blocks of each stage by the numbers in the keys."""
    numbers: dict[str, set[str]] = {stage: set() for stage in stages}
    for name in state:
        match = re.match(r"(\w+)\.(\d+)\.", name)
        if match and match[1] in numbers:
            numbers[match[1]].add(match[2])
    return tuple(len(numbers[stage]) for stage in stages)


def _fill(backbone: Backbone, state: Mapping[str, Tensor], *, path: Path) -> Backbone:
    """Copy the tensors into a backbone on the meta device if names and shapes agree exactly.

    Meta, so that nothing is allocated for a file that does not fit and no random number is spent.
    """
    expected = backbone.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{path}: missing {_list_names(missing)}; unexpected {_list_names(unexpected)}; "
            f"expected exactly the {len(expected)} keys of a {type(backbone).__name__}; "
            "check that the file holds this architecture"
        )
    for name, value in state.items():
        if value.shape != expected[name].shape:
            size = backbone.architecture if isinstance(backbone, TorchvisionBackbone) else f"width {backbone.width}"
            raise ValueError(
                f"{path}: {name} has shape {tuple(value.shape)}; expected {tuple(expected[name].shape)} at {size}; "
                "check that the file holds this architecture"
            )
    backbone.to_empty(device="cpu")
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    backbone.load_state_dict({**counters, **state}, strict=True)
    return backbone


def _list_names(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    # A damaged file may hold names with line breaks: those are shown quoted.
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_NUM_NAMES_SHOWN])
    hidden = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _dashed(numbers: Sequence[int]) -> str:
    return "-".join(str(number) for number in numbers)


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return "an empty dict"
    return f"a {type(content).__name__}"
