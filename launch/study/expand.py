"""Expand a study into the configs of its experiments.

Reads no data and writes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from crisscross.config.base import Settings
from crisscross.config.datasets import DATASETS
from crisscross.config.evaluation import complete, streams_of
from crisscross.config.experiment import (
    check_kept,
    check_pretraining,
    fold_by_fold,
    trains,
)
from crisscross.config.method import modalities_of
from crisscross.utils.plain import canonical_json, plain_copy
from launch.study.cluster import ClusterSettings, resource_kind_of
from launch.study.overrides import RoutedOverrides, compose_config, groups_of, has_key
from launch.tracking import resolve


class LaunchSettings(Settings):
    """``experiments/conf/launch.yaml``."""

    study: StudySettings
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    fair: bool
    roots: dict[str, str | None]
    dry_run: bool
    max_parallel: int | None = Field(default=None, gt=0)
    cluster: ClusterSettings | None = None


Point = Mapping[str, Any]
"""A value of every axis."""

ABOUT_A_DATASET = (
    "data",
    *(f"data.{key}" for key in ("root", "csv", "annotations", "name", "kind", "require", "folds", "shards")),
    *(f"data.{key}" for key in ("train_split", "test_split", "label_column", "file_column", "split_column")),
)
"""Overrides that describe one dataset. They do not apply to another one that a study names."""

SHARED = ("model", "views", "training")
"""Config nodes that all methods share with ``fair=true``."""


class AxisValue(Settings):
    """The overrides of an axis value, by kind of experiment.

    Without any, the override is ``axis=value``.
    """

    pretrain: list[str] | None = None
    downstream: list[str] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is just ``axis=value``."""
        return self.pretrain is None and self.downstream is None

    def overrides(self, kind: str) -> list[str]:
        """Return the overrides of a kind of experiment."""
        return (self.pretrain if kind == "pretrain" else self.downstream) or []


class StudySettings(Settings):
    """A file of ``experiments/conf/study``."""

    name: str
    script: str
    table: int | str
    tables: dict[str, str] = Field(default_factory=dict)
    figures: tuple[str, ...] = ()
    question: str
    axes: dict[str, Annotated[list[Any], Field(min_length=1)] | Annotated[dict[str, AxisValue], Field(min_length=1)]]
    downstream: list[list[str]]
    floor: bool
    authors: dict[str, dict[str, AxisValue]] = Field(default_factory=dict)

    def points(self) -> list[Point]:
        """Return every combination of values."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def axis_value(self, axis: str, value: Any) -> AxisValue:
        """Return the overrides of a value."""
        values = self.axes[axis]
        return values[value] if isinstance(values, dict) else AxisValue()

    def with_authors(self) -> StudySettings:
        """Return the study with the settings of the methods' authors.

        A value without such settings stays as it is.
        """
        axes = dict(self.axes)
        for axis, overridden in self.authors.items():
            axes[axis] = {value: overridden.get(value, self.axis_value(axis, value)) for value in axes[axis]}
        return self.model_copy(update={"axes": axes})


class ConfigComposer:
    """The configs of a study.

    Hydra composes as few as possible, as it is slow; the rest differ by one key.
    """

    def __init__(
        self,
        routed: RoutedOverrides,
        study: StudySettings,
        *,
        dataset_roots: Mapping[str, str],
        cluster: ClusterSettings | None = None,
        fair: bool = False,
    ) -> None:
        """Set up a composer.

        Args:
            routed: the overrides of the command line.
            study: axes and entries.
            dataset_roots: folders of datasets, by ``data.name``.
            cluster: the cluster; None = this machine.
            fair: whether all methods get the same inputs, backbones, epochs and batch (``SHARED``).
        """
        self._routed, self._study, self._roots, self._cluster = routed, study, dataset_roots, cluster
        self._fair = fair
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}
        self._data: dict[str, dict[str, Any]] = {}

    def config(self, kind: str, point: Point, *, seed: int, entry: Sequence[str] = ()) -> dict[str, Any]:
        """Return the config of one experiment.

        The experiment is given by a point on the axes, a seed and an entry.
        """
        config = plain_copy(self._base(kind, point, entry))
        for axis, value in point.items():
            if self._is_key(kind, axis, value) and has_key(config, axis):
                _set_key(config, axis, value)
        config["seed"] = seed
        config["tracking"] = resolve(config["tracking"], where="study" if self._cluster is None else "slurm")
        if self._cluster is not None:
            _set_cluster(kind, config, self._cluster)
        config["data"] = self._data.get(canonical_json(config["data"]), config["data"])
        if kind == "downstream":
            pretraining = self.config("pretrain", point, seed=seed)
            check_kept(config["weights"]["epoch"], pretraining["training"])
            config = complete(config, pretrained_on=pretraining["data"]["name"])
        return config

    def evaluations(self, point: Point, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the evaluations of one pretraining, each with its random-init baseline.

        A fine-tuning is one evaluation per fold. Modalities that the method does not train are left out.
        """
        pretraining = self.config("pretrain", point, seed=seed)
        for entry in self._study.downstream:
            for baseline in fold_by_fold(self.config("downstream", point, seed=seed, entry=entry)):
                config = _restrict(plain_copy(baseline), modalities_of(pretraining["method"]))
                baseline["weights"]["epoch"] = None  # a random init has no epochs
                if config is not None:
                    check_pretraining(pretraining, config)
                    yield config, baseline

    def all_configs(self, seeds: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
        """Return every distinct config that the study uses, with its kind.

        Raises:
            ValueError: if an axis is no setting of any experiment.
        """
        configs = []
        for point, seed in itertools.product(self._study.points(), seeds):
            configs.append(("pretrain", self.config("pretrain", point, seed=seed)))
            configs += [("downstream", config) for config, _ in self.evaluations(point, seed)]
        for axis, values in self._study.axes.items():
            plain = [value for value in values if self._study.axis_value(axis, value).is_plain]
            if plain and not any(axis in groups_of(kind) or has_key(config, axis) for kind, config in configs):
                raise ValueError(f"study.axes.{axis}: no experiment has a setting {axis}")
        return configs

    def prepare_data(self, prepare: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        """Prepare each dataset once, for all experiments with the same data settings."""
        for base in self._bases.values():
            key = canonical_json(base["data"])
            if key not in self._data:
                self._data[key] = prepare(base["data"])

    def _base(self, kind: str, point: Point, entry: Sequence[str]) -> dict[str, Any]:
        """Return the config that Hydra composes from all overrides."""
        of_study, choices = list(entry), []
        for axis, value in point.items():
            chosen = self._study.axis_value(axis, value)
            of_study += chosen.overrides(kind)
            if chosen.is_plain and axis in groups_of(kind):
                choices.append(f"{axis}={value}")
        overrides = (*_join(of_study, self._routed.kinds[kind]), *choices)
        if (kind, *overrides) not in self._bases:
            base = compose_config(kind, overrides)
            if self._fair and kind == "pretrain":
                common = compose_config(kind, [override for override in overrides if _key(override) != "method"])
                base |= {node: common[node] for node in SHARED}
            self._bases[(kind, *overrides)] = {**base, "data": _with_root(base["data"], self._roots)}
        return self._bases[(kind, *overrides)]

    def _is_key(self, kind: str, axis: str, value: Any) -> bool:
        """Return whether an axis is a config key.

        Other axes are config groups of Hydra.
        """
        return self._study.axis_value(axis, value).is_plain and axis not in groups_of(kind)


def _join(of_study: Sequence[str], of_user: Sequence[str]) -> list[str]:
    """Join the overrides of a study and of the user.

    The user's take precedence, except those that describe a dataset if the study names another one.
    """
    if any(_key(override) == "data" for override in of_study):
        of_user = [override for override in of_user if _key(override) not in ABOUT_A_DATASET]
    keys = {_key(override) for override in of_user}
    return [*(override for override in of_study if _key(override) not in keys), *of_user]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _with_root(data: Mapping[str, Any], roots: Mapping[str, str]) -> dict[str, Any]:
    """Return the data settings with the dataset's folder.

    The dataset is one that is given by its name.
    """
    if data["root"] is not None or data.get("csv"):
        return dict(data)
    return {**data, "root": roots.get(data["name"])}


def _restrict(config: dict[str, Any], trained: str) -> dict[str, Any] | None:
    """Restrict an evaluation to the modalities that a method trains.

    Args:
        config: the evaluation; changed in place.
        trained: ``v``, ``a`` or ``av``.

    Returns:
        The config, or None if no modality is left.
    """
    if set(streams_of(config["downstream"])) <= set(trained):
        return config
    possible = [name for name in config["downstream"].get("modalities", ()) if set(name) <= set(trained)]
    if possible:
        config["downstream"]["modalities"] = possible
    return config if possible else None


def _set_key(config: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        config = config[part]
    config[last] = value


def _set_cluster(kind: str, config: dict[str, Any], cluster: ClusterSettings) -> None:
    """Set devices, folder and MLflow store of an experiment on a cluster."""
    asked = cluster.resources_of(resource_kind_of(kind, config))
    if not trains(config) and asked.num_tasks > 1:
        raise ValueError(
            f"cluster.resources.{resource_kind_of(kind, config)}: an evaluation is one process: set nodes and"
            " tasks_per_node to 1"
        )
    if kind == "pretrain" and config["execution"]["num_devices"] not in (1, asked.num_tasks):
        raise ValueError(
            f"execution.num_devices={config['execution']['num_devices']}: on a cluster it is"
            f" cluster.resources.pretrain.nodes x tasks_per_node = {asked.num_tasks}: set those"
        )
    config["execution"]["num_devices"] = asked.num_tasks
    config["runs_root"] = cluster.place(config["runs_root"])
    config["tracking"]["uri"] = cluster.place_store(config["tracking"]["uri"])


def known_roots(roots: Mapping[str, str | None], typed: Sequence[str]) -> dict[str, str]:
    """Return the known folders of datasets, by ``data.name``.

    Kinetics-Sound is a part of Kinetics400.

    Args:
        roots: the ``roots`` of the launch.
        typed: overrides of the pretrainings, which may have ``data=NAME data.root=DIR``.
    """
    given = dict(override.split("=", 1) for override in typed if override.startswith(("data=", "data.root=")))
    known = {name: root for name, root in roots.items() if root}
    if {"data", "data.root"} <= set(given):
        known.setdefault(given["data"], given["data.root"])
    if "kinetics400" in known:
        known.setdefault("kinetics_sound", known["kinetics400"])
    return known


def without_unknown(study: StudySettings, roots: Mapping[str, str]) -> tuple[StudySettings, list[str]]:
    """Return a study without evaluations on datasets without a folder.

    Args:
        study: the study.
        roots: folders of datasets, by ``data.name``.

    Returns:
        The study, and one line for each dataset that is left out.

    Raises:
        ValueError: if no evaluation is left.
    """
    kept, lacking = [], []
    for entry in study.downstream:
        named = [override.partition("=")[2] for override in entry if override.startswith("data=")]
        has_root = any(override.startswith("data.root=") for override in entry)
        unknown = [name for name in named if name in DATASETS and name not in roots and not has_root]
        lacking += unknown
        if not unknown:
            kept.append(entry)
    names = list(dict.fromkeys(lacking))
    if lacking and not kept:
        raise ValueError(
            f"roots.{names[0]} is not set, nor is any other dataset that this study evaluates on"
            f" ({', '.join(names)}): set roots.{names[0]}=DIR"
        )
    lines = [f"not evaluated on {name}: roots.{name} is not set (roots.{name}=DIR adds it)" for name in names]
    return study.model_copy(update={"downstream": kept}), lines
