"""A study: command line -> graph of experiments -> what is missing is run -> table.

Launching reconciles: done work is kept, running work is waited for, the rest is started. Launching twice
starts nothing new.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.experiment import KINDS as SETTINGS
from crisscross.config.experiment import ignored, training_node, training_of, trains
from crisscross.run.identity import family
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.plain import canonical_json
from launch.study.expand import Composer, LaunchSettings, StudySettings, known_roots, without_unknown
from launch.study.graph import Experiment, Graph
from launch.study.overrides import RoutedOverrides, hydra_configs, route
from launch.study.record import write_record

Prepare = Callable[[Mapping[str, Any]], dict[str, Any]]
NUM_CREATORS = 8
"""Run directories that are made side by side; each mostly waits for the disk (chosen by us)."""


@dataclass(frozen=True)
class Plan:
    """A study expanded.

    Attributes:
        launch: the settings of the launch.
        graph: the experiments.
        fingerprint: 8 hexadecimal digits that launches have in common whose results may stand in one table.
        overrides: what the user typed.
        warnings: a line for each setting that will have no effect, and for what is left out.
    """

    launch: LaunchSettings
    graph: Graph
    fingerprint: str
    overrides: tuple[str, ...]
    warnings: tuple[str, ...] = ()

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
        prepare: makes the clips ready and fills in their fingerprint; None = ``catalog.prepare``.

    Raises:
        ValueError, OSError: one line that says what is wrong and what to do.
    """
    with hydra_configs():
        routed = route(overrides, study=study)
        launch = parse(LaunchSettings, {**routed.launch, "seeds": _unique(routed.launch["seeds"])})
        _require_cluster(routed.launcher, launch)
        if not launch.fair:
            launch = launch.model_copy(update={"study": launch.study.with_authors()})
        roots = known_roots(launch.roots, routed.kinds["pretrain"])
        known, left_out = without_unknown(launch.study, roots)
        launch = launch.model_copy(update={"study": known})
        composer = Composer(routed, known, roots=roots, cluster=launch.cluster, fair=launch.fair)
        checked = [parse(SETTINGS[kind], config) for kind, config in composer.all_configs(launch.seeds)]
        whole = _families_of_whole(routed, launch)
    composer.prepare_data(prepare or _prepare)
    if prepare is None:
        _check_batches(composer, launch)
    graph = Graph(_expand(composer, launch))
    families = whole or {family(item.config, axes=[*launch.study.axes, "seed"]) for item in graph}
    ineffective = dict.fromkeys(line for settings in checked for line in ignored(settings))
    return Plan(launch, graph, study_fingerprint(families), tuple(overrides), (*left_out, *ineffective))


def _families_of_whole(routed: RoutedOverrides, launch: LaunchSettings) -> set[str]:
    """Return the families of all that a study could run, whichever part of it was asked for; empty where axes are keys.

    A value of an axis that changes much of a config, such as a method, cannot be left out of it: launches of parts of
    a study have in common what the whole is. Its data need not be there, so it counts by its settings.
    """
    if all(isinstance(values, list) for values in launch.study.axes.values()):
        return set()
    whole = parse(StudySettings, routed.whole_study)
    composer = Composer(routed, whole if launch.fair else whole.with_authors(), roots={}, fair=launch.fair)
    configs = [config for _, config in composer.all_configs(launch.seeds[:1])]
    return {family({**config, "data": _settings_of_data(config["data"])}, axes=["seed"]) for config in configs}


def _settings_of_data(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "fingerprint"}


def study_fingerprint(families: Iterable[str]) -> str:
    """Return 8 hexadecimal digits that launches have in common whose results may stand in one table.

    Args:
        families: what the experiments are when axes and seeds are left out (``crisscross.run.identity.family``).
    """
    families = sorted(set(families))
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
        "script": study.script,
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
            studies={plan.name: {**about, "point": dict(experiment.point)}},
        )

    with ThreadPoolExecutor(NUM_CREATORS) as pool:
        for level in plan.graph.levels():  # parents first
            made = pool.map(create, level)
            runs |= {experiment.identity: run for experiment, run in zip(level, made, strict=True)}
    return runs


def _expand(composer: Composer, launch: LaunchSettings) -> list[Experiment]:
    experiments, floors = [], []
    for seed, point in itertools.product(launch.seeds, launch.study.points()):
        pretrain = Experiment("pretrain", composer.config("pretrain", point, seed=seed), point=point)
        experiments.append(pretrain)
        for config, floor in composer.evaluations(point, seed):
            floors.append(Experiment("downstream", floor))
            config["weights"]["run"] = str(pretrain.path)
            experiments.append(Experiment("downstream", config, (pretrain,), point=point))
    return [*experiments, *floors] if launch.study.floor else experiments


def _unique(values: Any) -> Any:
    return list(dict.fromkeys(values)) if isinstance(values, list) else values


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    from crisscross.data.catalog import prepare

    return prepare(data, progress=True)


def _check_batches(composer: Composer, launch: LaunchSettings) -> None:
    from crisscross.data.catalog import check_batch

    checked = set()
    for _, config in composer.all_configs(launch.seeds):
        method = config.get("method", {})
        sizes = canonical_json([config["data"], training_of(config), method])
        if trains(config) and sizes not in checked:
            checked.add(sizes)
            split = config["data"]["train_split"]
            if "downstream" in config:  # with the number of its fold, where it has one
                split = parse(DataSettings, config["data"]).splits[0]
            node = {"data": {**config["data"], "train_split": split}, "training": training_of(config), "method": method}
            check_batch(node, node=training_node(config))


def _require_cluster(launcher: str, launch: LaunchSettings) -> None:
    """Check that the chosen launcher is one that studies know."""
    if launch.cluster is None and launcher not in ("local", "basic"):
        raise ValueError(
            f"hydra/launcher={launcher}: it describes no cluster: use one of experiments/conf/hydra/launcher, or copy"
            " its template.yaml"
        )


def register(plan: Plan, *, where: str, together: Mapping[str, str] | None = None) -> dict[str, RunDirectory]:
    """Write a study's record and make or find its run directories.

    Args:
        plan: the study.
        where: ``"local"`` or ``"slurm"``.
        together: the studies that it was launched with, itself included, and their variants: they get one report.

    Returns:
        Run directories by identity.
    """
    study, tracking = plan.launch.study, plan.config["tracking"]
    about = {
        "study": study.name,
        "script": study.script,
        "table": study.table,
        "fingerprint": plan.fingerprint,
        "tracking": {key: tracking[key] for key in ("uri", "experiment", "delivery")},
        **({"together": dict(together)} if together else {}),  # else those of an earlier launch stay
    }
    record = write_record(
        plan.runs_root, plan.name, experiments=list(plan.graph), about=about, overrides=plan.overrides, where=where
    )
    return create_runs(plan, launched=record["launched"])


def make_writable(runs_root: Path) -> None:
    """Make sure that run directories can be made, before anything is computed."""
    try:
        (runs_root / "studies").mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=runs_root / "studies"):
            pass
    except OSError as error:
        raise OSError(f"runs_root={runs_root}: {error.strerror}: choose a folder you can write") from error
