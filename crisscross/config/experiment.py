"""Settings of a whole experiment, checked before anything is submitted or computed.

The YAML files in ``experiments/conf`` hold the values; the classes of this package hold types, ranges and units. The
package imports only pydantic, so that a login node checks a thousand configs in a moment.
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
    """The scale of an experiment."""

    name: str  # demo or paper, for tables and run labels


class ExperimentSettings(Settings):
    """Settings that pretraining and downstream experiments share."""

    scale: ScaleSettings
    model: ModelSettings
    views: ViewSettings
    data: DataSettings
    tracking: TrackingSettings
    execution: ExecutionSettings
    seed: int = Field(ge=0)  # of all random draws
    runs_root: str  # folder of the run directories


class PretrainSettings(ExperimentSettings):
    """One pretraining."""

    method: dict[str, Any]  # checked by the class of its name in crisscross/config/method.py
    optim: OptimSettings
    training: TrainingSettings
    relaxation: str  # how far apart the two views start, one of RELAXATION_NAMES (as in the paper)

    @model_validator(mode="after")
    def _is_possible(self) -> PretrainSettings:
        if self.relaxation not in RELAXATION_NAMES:
            raise ValueError(f"relaxation={self.relaxation} is unknown: choose one of {', '.join(RELAXATION_NAMES)}")
        if self.method.get("name") not in method_names():
            got = f"method.name={self.method['name']} is unknown" if "name" in self.method else "method.name is missing"
            raise ValueError(f"{got}: choose one of {', '.join(method_names())}")
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
    """Check that ``weights.epoch`` is the number of an epoch, or null.

    Raises:
        ValueError: if it is neither.
    """
    if epoch is not None and (not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0):
        raise ValueError(
            f"weights.epoch={epoch}: expected the number of an epoch that the pretraining has kept"
            " (training.keep_epochs), 0 for before its first step, or null for its end"
        )


class WeightsSettings(Settings):
    """The weights to evaluate; run, video and audio null = random initialization."""

    run: str | None  # run directory of a pretraining
    epoch: int | None = None  # epoch of that run, from training.keep_epochs; 0 = before training; null = the end
    video: str | None  # file of video weights, in the released format or torchvision's
    audio: str | None  # file of audio weights, in the released format
    fingerprint: str | None = None  # SHA-256 of these files; filled in when an experiment is created

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
    """One evaluation, on frozen features or by fine-tuning."""

    downstream: Protocol
    weights: WeightsSettings

    @property
    def frozen(self) -> FrozenProtocol:
        """The protocol, for evaluations on frozen features.

        Raises:
            ValueError: if the protocol is fine-tuning.
        """
        if isinstance(self.downstream, FinetuneSettings):
            raise ValueError("downstream.name=finetune has no frozen features: set another downstream=")
        return self.downstream

    @property
    def finetuning(self) -> FinetuneSettings:
        """The protocol, for fine-tuning.

        Raises:
            ValueError: if the protocol uses frozen features.
        """
        if not isinstance(self.downstream, FinetuneSettings):
            raise ValueError(f"downstream.name={self.downstream.name} trains no network: set downstream=finetune")
        return self.downstream

    @model_validator(mode="after")
    def _has_weights_of_what_it_uses(self) -> DownstreamSettings:
        files = {"v": self.weights.video, "a": self.weights.audio}
        if isinstance(self.downstream, FinetuneSettings):
            if files["a"] and not files["v"]:
                raise ValueError(f"weights.audio={files['a']}: fine-tuning trains the video network: set weights.video")
        elif any(files.values()):
            for stream, name, other in (("v", "video", "a"), ("a", "audio", "v")):
                if stream in self.downstream.streams and not files[stream]:
                    raise ValueError(
                        f"weights.{name} is not set, the other is: this would evaluate an untrained {name} network:"
                        f" set both, or downstream.modalities=[{other}]"
                    )
        return self

    @model_validator(mode="after")
    def _fine_tuning_is_possible(self) -> DownstreamSettings:
        protocol = self.downstream
        if isinstance(protocol, FinetuneSettings):
            if len(self.data.folds) > 1:
                raise ValueError(
                    f"data.folds={[*self.data.folds]}: fine-tuning takes one fold per experiment:"
                    f" set data.folds=[{self.data.folds[0]}], then the others"
                )
            if self.views.video.num_frames != protocol.frames:
                raise ValueError(
                    f"views.video.num_frames={self.views.video.num_frames} is not downstream.frames={protocol.frames}:"
                    " set only downstream.frames"
                )
            frozen, epochs = protocol.freeze_backbone_epochs, protocol.training.epochs
            if frozen > epochs:
                raise ValueError(
                    f"downstream.freeze_backbone_epochs={frozen} is more than downstream.training.epochs={epochs}:"
                    f" lower it ({epochs} = only the head learns, to the end), or raise downstream.training.epochs"
                )
            check_training(protocol.training, protocol.optim, num_devices=self.execution.num_devices)
        return self


KINDS: dict[str, type[ExperimentSettings]] = {"pretrain": PretrainSettings, "downstream": DownstreamSettings}


def training_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the ``training`` node of an experiment that trains, else None."""
    return config.get("downstream", config).get("training")


def training_node(config: Mapping[str, Any]) -> str:
    """Return the key of an experiment's ``training`` node, for messages."""
    return "downstream.training" if "downstream" in config else "training"


def fold_by_fold(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split the config of a fine-tuning into one config per fold.

    Args:
        config: a resolved config, checked or not; wrong folds are left for ``parse`` to report.

    Returns:
        One config per fold of a fine-tuning, the config itself for any other experiment.
    """
    folds = config["data"].get("folds")
    one_each = config.get("downstream", {}).get("name") == "finetune" and isinstance(folds, list)
    if not one_each or len(folds) < 2 or len({str(fold) for fold in folds}) < len(folds):
        return [dict(config)]
    return [{**plain_copy(dict(config)), "data": {**config["data"], "folds": [fold]}} for fold in folds]


def trains(config: Mapping[str, Any]) -> bool:
    """Whether an experiment trains a network: a pretraining or a fine-tuning."""
    return "method" in config or training_of(config) is not None


def ignored(settings: ExperimentSettings) -> list[str]:
    """Return one line for each setting that has no effect."""
    if isinstance(settings, PretrainSettings):
        return ignored_epochs(settings.training, settings.optim)
    if isinstance(settings, DownstreamSettings) and isinstance(settings.downstream, FinetuneSettings):
        return ignored_epochs(settings.downstream.training, settings.downstream.optim, above="downstream.")
    return []


def check_kept(epoch: int | None, training: Mapping[str, Any]) -> None:
    """Check that a pretraining keeps its weights of an epoch.

    Args:
        epoch: ``weights.epoch`` of an evaluation; None and 0 are always available.
        training: the ``training`` node of the pretraining.

    Raises:
        ValueError: if the pretraining does not keep this epoch.
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
    """Check that a pretraining trains the backbones that an evaluation needs.

    Args:
        pretraining: its config.
        evaluation: the evaluation's config.
        label: the name of the pretraining, for messages.

    Raises:
        ValueError: if the pretraining trains no such backbone, or one of another architecture.
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
