"""Load and export backbone weights in the authors' format: one state dict per modality.

Checkpoints of torchvision's video networks keep torchvision's names; their classifier, ``fc``, is dropped.

Files are read with ``weights_only=True``, so they cannot run code. Depth and width are derived from the shapes. The
prefix ``module.`` or ``backbone.`` of a wrapper is removed if all keys have it; no other key is renamed or dropped. The
only keys that may be missing are ``num_batches_tracked`` of the normalizations, which files of PyTorch before 0.4.1
lack and no result depends on.
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
_NUM_NAMES_SHOWN = 3  # ours
_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # torch.save's zip archive, and its pickle before PyTorch 1.6

# The exceptions of PyTorch's reader, besides OSError, for a damaged file.
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
    """Load a video backbone in the authors' format or in torchvision's.

    Args:
        path: the file.
        pool: the backbone's global pooling, which is not part of the file.

    Returns:
        The backbone in training mode, on the CPU, in single precision.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a video backbone's state dict; one line with the reason.
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
    """Load an audio backbone in the authors' format.

    Args:
        path: the file.

    Returns:
        The backbone in training mode, on the CPU, in single precision.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not an audio backbone's state dict; one line with the reason.
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
    """Write a backbone in the authors' format.

    It is a state dict on the CPU in single precision. The write is atomic.

    Args:
        backbone: unwrapped (pass ``model.module`` of a ``DistributedDataParallel``).
        path: the file to write; an existing one is replaced. Its folder is created if missing.

    Raises:
        ValueError: if ``backbone`` is not a backbone.
    """
    if not isinstance(backbone, (VideoNetwork, AudioBackbone)):
        raise ValueError(
            f"cannot export a {type(backbone).__name__}: expected a VideoBackbone or an AudioBackbone; unwrap it first"
        )
    state = {
        # A copy, because torch.save writes the whole storage of a view.
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in backbone.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict and remove a wrapper's prefix."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a backbone's state dict")
    content = _read_content(path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path}: holds {_describe(content)}; expected a state dict, names with their tensors; "
            "save model.state_dict()"
        )
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise ValueError(
            f"{path}: {_list_names(not_tensors)} not a tensor; expected a backbone's plain state dict; "
            "save that part of the file on its own"
        )
    return _without_prefix({str(key): value for key, value in content.items()})


def _read_content(path: Path) -> object:
    """Read a file without PyTorch's own messages.

    Those messages advise to trust the file.
    """
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
            # PyTorch reports a truncated archive as "invalid argument"; other OSErrors are errors of the disk.
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
    """Return the weight of the stem after checking the file's modality."""
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
    """Return a network on the meta device; a factorized stem means R(2+1)D."""
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
    """Count the blocks of each stage from the keys."""
    numbers: dict[str, set[str]] = {stage: set() for stage in stages}
    for name in state:
        match = re.match(r"(\w+)\.(\d+)\.", name)
        if match and match[1] in numbers:
            numbers[match[1]].add(match[2])
    return tuple(len(numbers[stage]) for stage in stages)


def _fill(backbone: Backbone, state: Mapping[str, Tensor], *, path: Path) -> Backbone:
    """Copy tensors into a backbone if names and shapes match exactly.

    The backbone is on the meta device, so a file that does not match allocates no memory, and no random numbers are
    drawn.
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
    # A damaged file may have names with line breaks: repr keeps the message on one line.
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_NUM_NAMES_SHOWN])
    hidden = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _dashed(numbers: Sequence[int]) -> str:
    return "-".join(str(number) for number in numbers)


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return "an empty dict"
    return f"a {type(content).__name__}"
