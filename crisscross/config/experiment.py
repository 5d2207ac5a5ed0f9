"""Typed settings: the resolved config, checked before anything is submitted or computed.

The config files in ``experiments/conf`` say what each key means; these classes say what it may hold. Nothing heavy is
imported here, so that a login node can check a thousand configs in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from crisscross.config.base import Settings
from crisscross.config.data import RELAXATION_NAMES, DataSettings
from crisscross.config.evaluation import FinetuneSettings, FrozenProtocol, Protocol, streams_of
from crisscross.config.method import check_modalities, method_names, modalities_of, settings_of
from crisscross.config.model import ModelSettings
from crisscross.config.optim import OptimSettings
from crisscross.config.runtime import ExecutionSettings, TrackingSettings
from crisscross.config.training import TrainingSettings, check_training, ignored_epochs
from crisscross.config.views import ViewSettings
from crisscross.utils.plain import plain_copy


class ScaleSettings(Settings):
    """The name of the scale, for tables."""

    name: str


class ExperimentSettings(Settings):
    """What pretraining and downstream experiments share."""

    scale: ScaleSettings
    model: ModelSettings
    views: ViewSettings
    data: DataSettings
    tracking: TrackingSettings
    execution: ExecutionSettings
    seed: int = Field(ge=0)
    runs_root: str


class PretrainSettings(ExperimentSettings):
    """One pretraining. ``method`` is checked by the class of its name in crisscross/config/method.py."""

    method: dict[str, Any]
    optim: OptimSettings
    training: TrainingSettings
    relaxation: str

    @model_validator(mode="after")
    def _is_possible(self) -> PretrainSettings:
        if self.relaxation not in RELAXATION_NAMES:
            raise ValueError(f"relaxation={self.relaxation} is unknown: choose one of {', '.join(RELAXATION_NAMES)}")
        if self.method.get("name") not in method_names():
            known = ", ".join(method_names())
            raise ValueError(f"method.name={self.method.get('name')} is unknown: choose one of {known}")
        method = settings_of(self.method)
        if method is not None and method.num_views == 1 and self.relaxation != "none":
            raise ValueError(
                f"relaxation={self.relaxation}: {method.name} learns from one view of a clip, there is nothing to"
                " relax: set relaxation=none"
            )
        self.data.check_for_pretraining(modalities_of(self.method))
        check_training(self.training, self.optim, num_devices=self.execution.num_devices)
        if method is not None:
            method.check_batch(self.training.samples_per_pass)
        return self


def check_epoch_number(epoch: Any) -> None:
    """Make sure that ``weights.epoch`` is the number of an epoch, or null.

    Raises:
        ValueError: one line that says what is allowed, when it is not.
    """
    if epoch is not None and (not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0):
        raise ValueError(
            f"weights.epoch={epoch}: expected the number of an epoch that the pretraining has kept"
            " (training.keep_epochs), 0 for before its first step, or null for its end"
        )


class WeightsSettings(Settings):
    """Which backbones are evaluated; all empty = untrained ones."""

    run: str | None
    epoch: int | None = None
    video: str | None
    audio: str | None
    fingerprint: str | None = None

    @field_validator("epoch", mode="before")
    @classmethod
    def _is_an_epoch(cls, epoch: Any) -> Any:
        check_epoch_number(epoch)
        return epoch

    @model_validator(mode="after")
    def _one_source(self) -> WeightsSettings:
        if self.run and (self.video or self.audio):
            raise ValueError("weights.run and weights.video / weights.audio exclude each other: set one source")
        return self


class DownstreamSettings(ExperimentSettings):
    """One evaluation."""

    downstream: Protocol
    weights: WeightsSettings

    @property
    def frozen(self) -> FrozenProtocol:
        """The protocol of an evaluation of frozen features.

        Raises:
            ValueError: it is a fine-tuning.
        """
        if isinstance(self.downstream, FinetuneSettings):
            raise ValueError("downstream.name=finetune has no frozen features: choose another protocol")
        return self.downstream

    @property
    def finetuning(self) -> FinetuneSettings:
        """The protocol of a fine-tuning.

        Raises:
            ValueError: it is an evaluation of frozen features.
        """
        if not isinstance(self.downstream, FinetuneSettings):
            raise ValueError(f"downstream.name={self.downstream.name} trains no network: choose finetune")
        return self.downstream

    @model_validator(mode="after")
    def _has_weights_of_what_it_uses(self) -> DownstreamSettings:
        files = {"v": self.weights.video, "a": self.weights.audio}
        if isinstance(self.downstream, FinetuneSettings):
            if files["a"] and not files["v"]:
                raise ValueError("weights.audio: fine-tuning trains the video network: set weights.video")
        elif any(files.values()):
            for stream, name, other in (("v", "video", "a"), ("a", "audio", "v")):
                if stream in self.downstream.streams and not files[stream]:
                    raise ValueError(
                        f"weights.{name} is not given, the other is: this would evaluate an untrained {name} network:"
                        f" set both, or downstream.modalities=[{other}]"
                    )
        return self

    @model_validator(mode="after")
    def _fine_tuning_is_possible(self) -> DownstreamSettings:
        protocol = self.downstream
        if isinstance(protocol, FinetuneSettings):
            if len(self.data.folds) > 1:
                raise ValueError(
                    f"data.folds={[*self.data.folds]}: fine-tuning takes one fold an experiment:"
                    f" data.folds=[{self.data.folds[0]}], then the others"
                )
            if self.views.video.num_frames != protocol.frames:
                raise ValueError(
                    f"views.video.num_frames={self.views.video.num_frames} is not downstream.frames={protocol.frames}:"
                    " set downstream.frames alone"
                )
            frozen, epochs = protocol.freeze_backbone_epochs, protocol.training.epochs
            if frozen > epochs:
                raise ValueError(
                    f"downstream.freeze_backbone_epochs={frozen} is more than downstream.training.epochs={epochs}:"
                    f" lower it ({epochs} = the head alone learns, to the end), or train longer"
                )
            check_training(protocol.training, protocol.optim, num_devices=self.execution.num_devices)
        return self


KINDS: dict[str, type[ExperimentSettings]] = {"pretrain": PretrainSettings, "downstream": DownstreamSettings}


def training_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the ``training`` node of an experiment that goes through the training loop, None for any other."""
    return config.get("downstream", config).get("training")


def training_node(config: Mapping[str, Any]) -> str:
    """Return where an experiment that goes through the training loop has its ``training`` node, for messages."""
    return "downstream.training" if "downstream" in config else "training"


def fold_by_fold(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the configs of the experiments that a config stands for: as it is, or one a fold for a fine-tuning.

    Args:
        config: a resolved config, checked or not: folds that are none are left to the check.
    """
    folds = config["data"].get("folds")
    one_each = config.get("downstream", {}).get("name") == "finetune" and isinstance(folds, list)
    if not one_each or len(folds) < 2 or len({str(fold) for fold in folds}) < len(folds):
        return [dict(config)]
    return [{**plain_copy(dict(config)), "data": {**config["data"], "folds": [fold]}} for fold in folds]


def trains(config: Mapping[str, Any]) -> bool:
    """Whether an experiment goes through the training loop: a pretraining, or an evaluation by fine-tuning."""
    return "method" in config or training_of(config) is not None


def ignored(settings: ExperimentSettings) -> list[str]:
    """Return a line for each setting that will have no effect, with the remedy; whoever launches shows them."""
    if isinstance(settings, PretrainSettings):
        return ignored_epochs(settings.training, settings.optim)
    if isinstance(settings, DownstreamSettings) and isinstance(settings.downstream, FinetuneSettings):
        return ignored_epochs(settings.downstream.training, settings.downstream.optim, above="downstream.")
    return []


def check_kept(epoch: int | None, training: Mapping[str, Any]) -> None:
    """Make sure that a pretraining that is still to come will keep its weights of the end of an epoch.

    Args:
        epoch: ``weights.epoch`` of an evaluation; None or 0 need no keeping.
        training: the ``training`` node of the pretraining.

    Raises:
        ValueError: one line that names the epochs that it keeps, when it will not.
    """
    check_epoch_number(epoch)
    kept = sorted({kept for kept in training["keep_epochs"] if 0 < kept < training["epochs"]} | {training["epochs"]})
    if epoch and epoch not in kept:
        raise ValueError(
            f"weights.epoch={epoch}: the pretraining keeps epochs {', '.join(str(number) for number in [0, *kept])}:"
            f" choose one of these, or add it to training.keep_epochs={training['keep_epochs']}"
        )


def check_pretraining(
    pretraining: Mapping[str, Any], evaluation: Mapping[str, Any], *, label: str = "the pretraining"
) -> None:
    """Make sure that a pretraining makes the backbones that an evaluation looks at, as the evaluation expects them.

    Args:
        pretraining: its config.
        evaluation: the evaluation's config.
        label: what the pretraining is called.

    Raises:
        ValueError: one line with the remedy, when it does not.
    """
    streams = streams_of(evaluation["downstream"])
    check_modalities(pretraining["method"], streams, label=label)
    for letter, name in (("v", "video"), ("a", "audio")):
        trained, expected = pretraining["model"][name], evaluation["model"][name]
        if letter in streams and trained != expected:
            raise ValueError(
                f"model.{name}={_shown(expected)} is not what {label} trains, {_shown(trained)}: give the evaluation"
                " the model= (or scale=) of the pretraining"
            )


def _shown(node: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in node.items()) + "}"
