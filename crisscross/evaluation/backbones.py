"""The backbones of an evaluation: pretrained, from files or randomly initialized."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crisscross.config.experiment import DownstreamSettings
from crisscross.config.method import check_modalities, modalities_of
from crisscross.data.catalog import count_epoch_steps
from crisscross.models.backbones import Backbones, load_backbones, random_init_backbones
from crisscross.run.identity import weights_hash
from crisscross.run.run_dir import RunDirectory
from crisscross.training.checkpoint import checkpoint_path, load_checkpoint

logger = logging.getLogger(__name__)

SPECTROGRAM = (
    "sample_rate_hz",
    "n_fft",
    "hop_samples",
    "num_mels",
    "f_min_hz",
    "f_max_hz",
    "log_offset",
    "mean",
    "std",
)
"""The keys of ``views.audio.transform`` that define the network's input; the others are augmentation."""


def backbones_of(run: RunDirectory, settings: DownstreamSettings) -> Backbones:
    """Return the backbones of an evaluation, on the CPU.

    Args:
        run: the evaluation's run directory.
        settings: its settings.

    Raises:
        FileNotFoundError: if a weights file is missing.
        ValueError: if the parent is not finished, the epoch was not kept, or a weights file does not fit the model.
    """
    weights = settings.weights
    if run.parents:
        (parent,) = run.parents
        check_modalities(parent.config["method"], settings.downstream.streams, label=f"weights.run={parent.label}")
        for mismatch in mismatch_warnings(parent.config, settings):
            logger.warning("weights.run=%s %s", parent.label, mismatch)
        if weights.epoch is not None:
            return _at_epoch(parent, settings, weights.epoch)
        if parent.result is None:
            raise ValueError(f"{parent.label} is not finished: run it first (launch/status.py shows its state)")
        files = {modality: parent.path / name for modality, name in parent.result["backbones"].items()}
        return load_backbones(settings.model, video=files.get("video"), audio=files.get("audio"))
    if weights.epoch is not None:
        raise ValueError(f"weights.epoch={weights.epoch} is an epoch of a pretraining: set weights.run, too")
    if weights.video or weights.audio:
        if weights_hash(weights.video, weights.audio) != weights.fingerprint:
            raise ValueError("the weight files have changed since this evaluation was created: run the command again")
        return _from_files(settings)
    return random_init_backbones(settings.model, seed=settings.seed)


def check_files(settings: DownstreamSettings) -> None:
    """Check that the weight files, if any, fit the model settings.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file does not fit the model.
    """
    if settings.weights.video or settings.weights.audio:
        _from_files(settings)


def _from_files(settings: DownstreamSettings) -> Backbones:
    files = settings.weights
    return load_backbones(
        settings.model,
        video=Path(files.video) if files.video else None,
        audio=Path(files.audio) if files.audio else None,
    )


def mismatch_warnings(pretraining: Mapping[str, Any], settings: DownstreamSettings) -> list[str]:
    """Return one line per difference between an evaluation's and a pretraining's inputs.

    Such differences are allowed, and no network rejects them, but they rarely are intended.

    Args:
        pretraining: the config of the pretraining.
        settings: the settings of the evaluation.
    """
    found, protocol = [], settings.downstream
    pool = pretraining["method"].get("pool", "avg")
    uses_average = "v" in protocol.streams and protocol.name != "finetune" and protocol.features.video_layer == "pooled"
    if uses_average and pool == "max":
        found.append(
            "was pretrained with method.pool=max, downstream.features.video_layer=pooled is an average: set"
            " downstream.features.video_layer=max to evaluate the pooling that it was trained with"
        )
    if "a" in protocol.streams:
        before, now = pretraining["views"]["audio"]["transform"], settings.views.audio.transform
        others = [f"{name}={before[name]}, not {now[name]}" for name in SPECTROGRAM if before[name] != now[name]]
        if others:
            found.append(
                f"was trained on other spectrograms ({'; '.join(others)}): set views= to that of the pretraining"
            )
    return found


def check_epoch(parent: RunDirectory, epoch: int) -> Path | None:
    """Check that a pretraining has kept its weights of an epoch.

    Returns:
        The checkpoint; None for epoch 0, whose weights depend only on the seed.

    Raises:
        ValueError: if it has not kept them; the message names the kept epochs.
        FileNotFoundError: if it is not finished and the manifest of its dataset is missing.
    """
    if epoch == 0:
        return None
    kept = _kept(parent)
    if epoch not in kept:
        known = ", ".join(str(number) for number in [0, *kept])
        if parent.result is None and epoch in _to_keep(parent):
            raise ValueError(
                f"weights.epoch={epoch}: {parent.label} is not finished and has kept epochs {known} so far: choose one"
                " of these, or run it further first"
            )
        raise ValueError(
            f"weights.epoch={epoch}: {parent.label} has kept epochs {known}:"
            f" choose one of these, or pretrain again with training.keep_epochs=[{epoch}] and another runs_root"
        )
    return kept[epoch]


def _kept(parent: RunDirectory) -> dict[int, Path]:
    """Return the permanent checkpoints by epoch."""
    epochs = parent.config["training"]["epochs"]
    if parent.result is None:
        steps_per_epoch, possible = count_epoch_steps(parent.config), _to_keep(parent)
    else:
        steps_per_epoch, possible = parent.result["steps"] // max(1, epochs), [*range(1, epochs + 1)]
    paths = {epoch: checkpoint_path(parent.checkpoints, epoch * steps_per_epoch) for epoch in possible}
    return {epoch: path for epoch, path in paths.items() if path.is_file() and path.with_suffix(".json").is_file()}


def _to_keep(parent: RunDirectory) -> list[int]:
    training = parent.config["training"]
    return sorted({epoch for epoch in training["keep_epochs"] if 0 < epoch < training["epochs"]} | {training["epochs"]})


def _at_epoch(parent: RunDirectory, settings: DownstreamSettings, epoch: int) -> Backbones:
    """Return a pretraining's backbones after an epoch; 0 = before training."""
    backbones = random_init_backbones(settings.model, seed=parent.config["seed"])
    checkpoint = check_epoch(parent, epoch)
    if checkpoint is None:
        return backbones
    state, _ = load_checkpoint(checkpoint)
    own = {
        name: tensor
        for name, tensor in state["method"].items()
        if name.startswith(("video_backbone.", "audio_backbone."))
    }
    trained = modalities_of(parent.config["method"])
    expected = Backbones(settings.model, modalities=trained).state_dict()
    if {name: tensor.shape for name, tensor in own.items()} != {n: tensor.shape for n, tensor in expected.items()}:
        raise ValueError(
            f"weights.run={parent.label} has backbones of another size than the config's model node:"
            " set scale= or model= to that of the pretraining"
        )
    backbones.load_state_dict(own, strict=trained == "av")  # backbones that were not trained keep their initial weights
    return backbones
