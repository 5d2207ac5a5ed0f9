"""Which backbones an evaluation starts from: a pretraining's, at its end or on the way, released ones, or untrained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crisscross.config.experiment import DownstreamSettings
from crisscross.config.method import check_modalities, modalities_of
from crisscross.data.catalog import step_plan
from crisscross.models.backbones import Backbones, load_backbones, untrained_backbones
from crisscross.run.identity import weights_fingerprint
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
"""What of ``views.audio.transform`` says what a network hears; the rest is augmentation."""


def backbones_of(run: RunDirectory, settings: DownstreamSettings) -> Backbones:
    """Return the backbones that an evaluation starts from, on the CPU.

    Args:
        run: the evaluation's run directory, which knows its parent.
        settings: its settings.

    Raises:
        FileNotFoundError: when a file of weights is not there.
        ValueError: one line, when the parent is not finished, the epoch was not kept, or a file is unfit.
    """
    weights = settings.weights
    if run.parents:
        (parent,) = run.parents
        check_modalities(parent.config["method"], settings.downstream.streams, label=f"weights.run={parent.label}")
        for remark in remarks(parent.config, settings):
            logger.warning("weights.run=%s %s", parent.label, remark)
        if weights.epoch is not None:
            return _on_the_way(parent, settings, weights.epoch)
        if parent.result is None:
            raise ValueError(f"{parent.label} is not finished: run it first (launch/status.py shows how it stands)")
        files = {modality: parent.path / name for modality, name in parent.result["backbones"].items()}
        return load_backbones(settings.model, video=files.get("video"), audio=files.get("audio"))
    if weights.epoch is not None:
        raise ValueError(f"weights.epoch={weights.epoch} is an epoch of a pretraining: set weights.run, too")
    if weights.video or weights.audio:
        if weights_fingerprint(weights.video, weights.audio) != weights.fingerprint:
            raise ValueError("the weight files have changed since this evaluation was made: run the command again")
        return _released(settings)
    return untrained_backbones(settings.model, seed=settings.seed)


def check_files(settings: DownstreamSettings) -> None:
    """Make sure that files of released weights, where some are given, hold what the settings say.

    Raises:
        FileNotFoundError: when one is not there.
        ValueError: one line, when one is unfit.
    """
    if settings.weights.video or settings.weights.audio:
        _released(settings)


def _released(settings: DownstreamSettings) -> Backbones:
    files = settings.weights
    return load_backbones(
        settings.model,
        video=Path(files.video) if files.video else None,
        audio=Path(files.audio) if files.audio else None,
    )


def remarks(pretraining: Mapping[str, Any], settings: DownstreamSettings) -> list[str]:
    """Return what an evaluation looks at otherwise than its pretraining did, with the setting that would not.

    Nothing of it is wrong, and networks of any input size take it without a word.

    Args:
        pretraining: the config of the pretraining.
        settings: those of the evaluation.
    """
    found, protocol = [], settings.downstream
    pool = pretraining["method"].get("pool", "avg")
    looks_at_average = (
        "v" in protocol.streams and protocol.name != "finetune" and protocol.features.video_layer == "pooled"
    )
    if looks_at_average and pool == "max":
        found.append(
            "was pretrained with method.pool=max, downstream.features.video_layer=pooled is an average: set"
            " downstream.features.video_layer=max to look at what it was trained for"
        )
    if "a" in protocol.streams:
        heard, now = pretraining["views"]["audio"]["transform"], settings.views.audio.transform
        others = [f"{name}={heard[name]}, not {now[name]}" for name in SPECTROGRAM if heard[name] != now[name]]
        if others:
            found.append(f"heard other spectrograms ({'; '.join(others)}): set views= to that of the pretraining")
    return found


def check_epoch(parent: RunDirectory, epoch: int) -> Path | None:
    """Make sure that a pretraining, finished or not, has kept its weights of the end of an epoch.

    Returns:
        The checkpoint; None for epoch 0, which the seed alone makes.

    Raises:
        ValueError: one line that names the kept epochs, when it has not.
        FileNotFoundError: when it is not finished and the manifest of its clips is gone.
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
    """Return the checkpoints that stay, by epoch. Of an unfinished pretraining, the last ones will be removed."""
    epochs = parent.config["training"]["epochs"]
    if parent.result is None:
        steps_per_epoch, possible = step_plan(parent.config).steps_per_epoch, _to_keep(parent)
    else:
        steps_per_epoch, possible = parent.result["steps"] // max(1, epochs), [*range(1, epochs + 1)]
    paths = {epoch: checkpoint_path(parent.checkpoints, epoch * steps_per_epoch) for epoch in possible}
    return {epoch: path for epoch, path in paths.items() if path.is_file() and path.with_suffix(".json").is_file()}


def _to_keep(parent: RunDirectory) -> list[int]:
    training = parent.config["training"]
    return sorted({epoch for epoch in training["keep_epochs"] if 0 < epoch < training["epochs"]} | {training["epochs"]})


def _on_the_way(parent: RunDirectory, settings: DownstreamSettings, epoch: int) -> Backbones:
    """Return a pretraining's backbones as they were after an epoch; 0 = before its first step."""
    backbones = untrained_backbones(settings.model, seed=parent.config["seed"])
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
    backbones.load_state_dict(own, strict=trained == "av")  # what was not trained stays as it is
    return backbones
