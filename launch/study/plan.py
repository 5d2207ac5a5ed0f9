"""The plan of a study: from the command line to a graph of experiments and their run directories."""

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
from crisscross.run.identity import group_hash
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import file_lock
from crisscross.utils.plain import canonical_json
from launch.study.expand import ConfigComposer, LaunchSettings, StudySettings, known_roots, without_unknown
from launch.study.graph import Experiment, Graph
from launch.study.overrides import RoutedOverrides, hydra_configs, route_overrides
from launch.study.record import write_record

Prepare = Callable[[Mapping[str, Any]], dict[str, Any]]
NUM_CREATORS = 8  # ours: threads that create run directories, mostly waiting for the disk


@dataclass(frozen=True)
class Plan:
    """An expanded study.

    Attributes:
        launch: the settings of the launch.
        graph: the experiments.
        fingerprint: the study hash, see ``study_hash``.
        overrides: the overrides of the command line.
        warnings: one line for each setting without effect, and for what is left out.
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
        """The config of the first experiment, for settings that all share."""
        return next(iter(self.graph)).config

    @property
    def runs_root(self) -> Path:
        """Folder of the run directories."""
        return Path(self.config["runs_root"])


def make_plan(study: str, overrides: Sequence[str], *, prepare: Prepare | None = None) -> Plan:
    """Expand a study; check every config before any data is read.

    Args:
        study: name of a file in ``experiments/conf/study``.
        overrides: the overrides of the command line.
        prepare: prepares the clips and sets their hash; None = ``catalog.prepare``.

    Raises:
        ValueError, OSError: if a setting is wrong or data is missing; one line with the remedy.
    """
    with hydra_configs():
        routed = route_overrides(overrides, study=study)
        launch = parse(LaunchSettings, {**routed.launch, "seeds": _unique(routed.launch["seeds"])})
        _require_cluster(routed.launcher, launch)
        if not launch.fair:
            launch = launch.model_copy(update={"study": launch.study.with_authors()})
        roots = known_roots(launch.roots, routed.kinds["pretrain"])
        known, left_out = without_unknown(launch.study, roots)
        launch = launch.model_copy(update={"study": known})
        composer = ConfigComposer(routed, known, dataset_roots=roots, cluster=launch.cluster, fair=launch.fair)
        checked = [parse(SETTINGS[kind], config) for kind, config in composer.all_configs(launch.seeds)]
        whole = _groups_of_whole_study(routed, launch)
    composer.prepare_data(prepare or _prepare)
    if prepare is None:
        _check_batches(composer, launch)
    graph = Graph(_expand(composer, launch))
    groups = whole or {group_hash(item.config, axes=[*launch.study.axes, "seed"]) for item in graph}
    ineffective = dict.fromkeys(line for settings in checked for line in ignored(settings))
    return Plan(launch, graph, study_hash(groups), tuple(overrides), (*left_out, *ineffective))


def _groups_of_whole_study(routed: RoutedOverrides, launch: LaunchSettings) -> set[str]:
    """Return the group hashes of the whole study.

    They do not depend on which part of it is launched. A value of an axis that changes much of a config, such as a
    method, cannot be left out of the hash. Launches of parts of such a study share the hash of the whole. Its data may
    be missing, so its settings are hashed instead.

    Returns:
        An empty set if all axes are config keys or groups.
    """
    if all(isinstance(values, list) for values in launch.study.axes.values()):
        return set()
    whole = parse(StudySettings, routed.whole_study)
    composer = ConfigComposer(
        routed, whole if launch.fair else whole.with_authors(), dataset_roots={}, fair=launch.fair
    )
    configs = [config for _, config in composer.all_configs(launch.seeds[:1])]
    return {group_hash({**config, "data": _settings_of_data(config["data"])}, axes=["seed"]) for config in configs}


def _settings_of_data(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "fingerprint"}


def study_hash(groups: Iterable[str]) -> str:
    """Return the hash of a study.

    It is common to launches whose results belong in one table.

    Args:
        groups: group hashes of the experiments (``crisscross.run.identity.group_hash``).

    Returns:
        8 hexadecimal digits.
    """
    return hashlib.sha256(canonical_json(sorted(set(groups))).encode()).hexdigest()[:8]


def create_runs(plan: Plan, *, launched: float) -> dict[str, RunDirectory]:
    """Create the run directories of a plan, or open existing ones.

    Args:
        plan: the study.
        launched: Unix time of the study's first launch.

    Returns:
        Run directories by identity.

    Raises:
        OSError: if they cannot be written.
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


def _expand(composer: ConfigComposer, launch: LaunchSettings) -> list[Experiment]:
    experiments, baselines = [], []
    for seed, point in itertools.product(launch.seeds, launch.study.points()):
        pretrain = Experiment("pretrain", composer.config("pretrain", point, seed=seed), point=point)
        experiments.append(pretrain)
        for config, baseline in composer.evaluations(point, seed):
            baselines.append(Experiment("downstream", baseline))
            config["weights"]["run"] = str(pretrain.path)
            experiments.append(Experiment("downstream", config, (pretrain,), point=point))
    return [*experiments, *baselines] if launch.study.floor else experiments


def _unique(values: Any) -> Any:
    return list(dict.fromkeys(values)) if isinstance(values, list) else values


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    from crisscross.data.catalog import prepare  # imports PyAV and the samplers, which `--help` does not need

    return prepare(data, progress=True)


def _check_batches(composer: ConfigComposer, launch: LaunchSettings) -> None:
    from crisscross.data.catalog import check_batch  # as above

    checked = set()
    for _, config in composer.all_configs(launch.seeds):
        method = config.get("method", {})
        sizes = canonical_json([config["data"], training_of(config), method])
        if trains(config) and sizes not in checked:
            checked.add(sizes)
            split = config["data"]["train_split"]
            if "downstream" in config:  # with the number of its fold, if it has one
                split = parse(DataSettings, config["data"]).splits[0]
            node = {"data": {**config["data"], "train_split": split}, "training": training_of(config), "method": method}
            check_batch(node, node=training_node(config))


def _require_cluster(launcher: str, launch: LaunchSettings) -> None:
    """Check that the launcher has a cluster or is local."""
    if launch.cluster is None and launcher not in ("local", "basic"):
        raise ValueError(
            f"hydra/launcher={launcher}: it describes no cluster: use one of experiments/conf/hydra/launcher, or copy"
            " its template.yaml"
        )


def register(plan: Plan, *, where: str, together: Mapping[str, str] | None = None) -> dict[str, RunDirectory]:
    """Write a study's record, and create or open its run directories.

    Args:
        plan: the study.
        where: ``"local"`` or ``"slurm"``.
        together: all studies of this launch with their hashes, for one report.

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
    """Check that run directories can be created and locked, before anything is computed."""
    try:
        (runs_root / "studies").mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=runs_root / "studies"):
            pass
        with file_lock(runs_root / "studies" / ".writable"):
            pass
    except OSError as error:
        if error.strerror is None:  # it names the file system and the remedy
            raise
        raise OSError(f"runs_root={runs_root}: {error.strerror}: choose a folder you can write") from error
