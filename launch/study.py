"""A study: command line -> graph of experiments -> what is missing is run -> table.

Launching reconciles: done work is kept, running work is waited for, the rest is started. Launching twice
starts nothing new.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console

from crisscross.data.settings import DataSettings
from crisscross.evaluation.finetune_table import complete
from crisscross.evaluation.settings import streams_of
from crisscross.identity import canonical_json, family, plain_copy
from crisscross.methods.settings import check_modalities
from crisscross.run_directory import RunDirectory
from crisscross.settings import KINDS as SETTINGS
from crisscross.settings import check_kept, fold_by_fold, training_node, training_of, trains
from crisscross.settings_base import Settings, parse
from launch.cluster import ClusterSettings, resource_kind_of
from launch.delivery import resolve
from launch.graph import Experiment, Graph
from launch.overrides import Routed, compose_config, groups_of, has_key, hydra_configs, route
from launch.records import StudyRunningError

Prepare = Callable[[Mapping[str, Any]], dict[str, Any]]

DATA_OVERRIDE = re.compile(r"[+~]*data[=.@]")

NUM_CREATORS = 8
"""Run directories that are made side by side; each mostly waits for the disk (chosen by us)."""


class StudySettings(Settings):
    """A file of ``experiments/conf/study``."""

    name: str
    table: int
    question: str
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]]
    downstream: list[list[str]]
    floor: bool


class LaunchSettings(Settings):
    """``experiments/conf/launch.yaml``."""

    study: StudySettings
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    dry_run: bool
    max_parallel: int | None = Field(default=None, gt=0)
    cluster: ClusterSettings | None = None


@dataclass(frozen=True)
class Plan:
    """A study expanded.

    Attributes:
        launch: the settings of the launch.
        graph: the experiments.
        fingerprint: 8 hexadecimal digits that launches have in common whose results may stand in one table.
        overrides: what the user typed.
    """

    launch: LaunchSettings
    graph: Graph
    fingerprint: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """``<study>.<fingerprint>``."""
        return f"{self.launch.study.name}.{self.fingerprint}"

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the first experiment, for what all have in common."""
        return next(iter(self.graph)).config

    @property
    def runs_root(self) -> Path:
        """Folder of the run directories."""
        return Path(self.config["runs_root"])


def make_plan(study: str, overrides: Sequence[str], *, prepare: Prepare | None = None) -> Plan:
    """Expand a study, checking every config before any data is touched.

    Args:
        study: name of a file in ``experiments/conf/study``.
        overrides: what the user typed.
        prepare: makes the clips ready and fills in their fingerprint; None = ``catalogue.prepare``.

    Raises:
        ValueError, OSError: one line that says what is wrong and what to do.
    """
    with hydra_configs():
        routed = route(overrides, study=study)
        launch = parse(LaunchSettings, {**routed.launch, "seeds": _unique(routed.launch["seeds"])})
        _require_cluster(routed.launcher, launch)
        composer = _Composer(routed, launch.study.axes, launch.cluster)
        for kind, config in composer.all_configs(launch):
            parse(SETTINGS[kind], config)
    composer.prepare_data(prepare or _prepare)
    if prepare is None:
        _check_batches(composer, launch)
    graph = Graph(_expand(composer, launch))
    return Plan(launch, graph, study_fingerprint(graph, axes=launch.study.axes), tuple(overrides))


def study_fingerprint(graph: Graph, *, axes: Sequence[str] | Mapping[str, Any]) -> str:
    """Return 8 hexadecimal digits over what the experiments are when axes and seeds are left out."""
    families = sorted({family(experiment.config, axes=[*axes, "seed"]) for experiment in graph})
    return hashlib.sha256(canonical_json(families).encode()).hexdigest()[:8]


def create_runs(plan: Plan, *, launched: float) -> dict[str, RunDirectory]:
    """Make or find the run directories of a plan.

    Args:
        plan: the study.
        launched: Unix time of the study's first launch.

    Returns:
        Run directories by identity.

    Raises:
        OSError: when they cannot be written.
    """
    study = plan.launch.study
    about = {
        "study": study.name,
        "table": study.table,
        "fingerprint": plan.fingerprint,
        "launched": launched,
    }
    runs: dict[str, RunDirectory] = {}

    def create(experiment: Experiment) -> RunDirectory:
        return RunDirectory.create(
            experiment.kind,
            experiment.config,
            parents=[runs[parent.identity] for parent in experiment.parents],
            studies={plan.name: about},
        )

    with ThreadPoolExecutor(NUM_CREATORS) as pool:
        for level in plan.graph.levels():  # parents first
            made = pool.map(create, level)
            runs |= {experiment.identity: run for experiment, run in zip(level, made, strict=True)}
    return runs


class _Composer:
    """Composes each kind of experiment as few times as possible: Hydra is slow, setting a key is not."""

    def __init__(self, routed: Routed, axes: Mapping[str, Sequence[Any]], cluster: ClusterSettings | None) -> None:
        self._routed = routed
        self._axes = axes
        self._cluster = cluster
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}
        self._data: dict[str, dict[str, Any]] = {}

    def config(self, kind: str, point: Mapping[str, Any], *, seed: int, entry: Sequence[str] = ()) -> dict[str, Any]:
        """Return the config of one experiment: a point on the axes, a seed and a study's own overrides."""
        choices = [f"{axis}={value}" for axis, value in point.items() if axis in groups_of(kind)]
        typed = [*self._routed.kinds[kind], *choices]
        if any(override.startswith("data=") for override in entry):  # of its own: what was typed is the pretrainings'
            typed = [override for override in typed if not DATA_OVERRIDE.match(override)]
        overrides = (*entry, *typed)
        if (kind, *overrides) not in self._bases:
            self._bases[(kind, *overrides)] = compose_config(kind, overrides)
        config = plain_copy(self._bases[(kind, *overrides)])
        for axis, value in point.items():
            if axis not in groups_of(kind) and has_key(config, axis):
                _set_key(config, axis, value)
        config["seed"] = seed
        config["tracking"] = resolve(config["tracking"], where="study" if self._cluster is None else "slurm")
        if self._cluster is not None:
            _place(kind, config, self._cluster)
        config["data"] = self._data.get(canonical_json(config["data"]), config["data"])
        if kind == "downstream":
            pretraining = self.config("pretrain", point, seed=seed)
            check_kept(config["weights"]["epoch"], pretraining["training"])
            check_modalities(pretraining["method"], streams_of(config["downstream"]), label="the pretraining")
            config = complete(config, pretrained_on=pretraining["data"]["name"])
        return config

    def evaluations(self, point: Mapping[str, Any], seed: int, launch: LaunchSettings) -> list[dict[str, Any]]:
        """Return the configs of the evaluations of one pretraining; a fine-tuning is one a fold."""
        entries = [self.config("downstream", point, seed=seed, entry=entry) for entry in launch.study.downstream]
        return [config for entry in entries for config in fold_by_fold(entry)]

    def all_configs(self, launch: LaunchSettings) -> list[tuple[str, dict[str, Any]]]:
        """Return every distinct config that the study uses, with its kind."""
        configs = []
        for point, seed in _points(launch):
            configs.append(("pretrain", self.config("pretrain", point, seed=seed)))
            configs += [("downstream", config) for config in self.evaluations(point, seed, launch)]
        for axis in self._axes:
            if not any(axis in groups_of(kind) or has_key(config, axis) for kind, config in configs):
                raise ValueError(f"study.axes.{axis}: no experiment has a setting {axis}")
        return configs

    def prepare_data(self, prepare: Prepare) -> None:
        """Prepare each dataset once; experiments with the same data settings share it."""
        for base in self._bases.values():
            key = canonical_json(base["data"])
            if key not in self._data:
                self._data[key] = prepare(base["data"])


def _expand(composer: _Composer, launch: LaunchSettings) -> list[Experiment]:
    experiments, floors = [], []
    for point, seed in _points(launch):
        pretrain = Experiment("pretrain", composer.config("pretrain", point, seed=seed))
        experiments.append(pretrain)
        for config in composer.evaluations(point, seed, launch):
            floor = plain_copy(config)
            floor["weights"]["epoch"] = None  # untrained backbones have no epochs
            floors.append(Experiment("downstream", floor))
            config["weights"]["run"] = str(pretrain.path)
            experiments.append(Experiment("downstream", config, (pretrain,)))
    return [*experiments, *floors] if launch.study.floor else experiments


def _points(launch: LaunchSettings) -> list[tuple[dict[str, Any], int]]:
    axes = launch.study.axes
    return [
        (dict(zip(axes, values, strict=True)), seed)
        for seed in launch.seeds
        for values in itertools.product(*axes.values())
    ]


def _set_key(config: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        config = config[part]
    config[last] = value


def _unique(values: Any) -> Any:
    return list(dict.fromkeys(values)) if isinstance(values, list) else values


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    from crisscross.data.catalogue import prepare

    return prepare(data, progress=True)


def _check_batches(composer: _Composer, launch: LaunchSettings) -> None:
    from crisscross.data.catalogue import check_batch

    checked = set()
    for _, config in composer.all_configs(launch):
        method = config.get("method", {})
        sizes = canonical_json([config["data"], training_of(config), method])
        if trains(config) and sizes not in checked:
            checked.add(sizes)
            split = config["data"]["train_split"]
            if "downstream" in config:  # with the number of its fold, where it has one
                split = parse(DataSettings, config["data"]).splits[0]
            node = {"data": {**config["data"], "train_split": split}, "training": training_of(config), "method": method}
            check_batch(node, node=training_node(config))


def _place(kind: str, config: dict[str, Any], cluster: ClusterSettings) -> None:
    """Say in a config how it runs on a cluster: on how many devices, in which folder, recorded where."""
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


def _require_cluster(launcher: str, launch: LaunchSettings) -> None:
    """Check that the chosen launcher is one that studies know."""
    if launch.cluster is None and launcher not in ("local", "basic"):
        raise ValueError(
            f"hydra/launcher={launcher}: it describes no cluster: use one of experiments/conf/hydra/launcher, or copy"
            " its template.yaml"
        )


def main(study: str, arguments: Sequence[str] | None = None) -> int:
    """Launch a study; return the exit code: 0 done, 1 failed, 2 wrong usage, 75 interrupted, 130 stopped."""
    from launch.report import help_text, launch  # which builds on this module

    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(overrides):
        print(help_text(study))
        return 0
    console = Console(stderr=False)
    try:
        plan = make_plan(study, overrides)
        return launch(plan, console=console)
    except StudyRunningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on; launch/status.py shows what there is", file=sys.stderr)
        return 130
