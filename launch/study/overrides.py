"""Command-line overrides: route each to the launch or to kinds of experiments, and check it.

Hydra composes the configs. A wrong override is reported here first, in one line with a remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crisscross.utils.plain import plain_copy

CONF = Path(__file__).resolve().parents[2] / "experiments" / "conf"
KINDS = ("pretrain", "downstream")
LAUNCH_KEYS = ("seeds", "fair", "roots", "dry_run", "max_parallel", "study.floor", "study.downstream")


@dataclass(frozen=True)
class RoutedOverrides:
    """Overrides by destination.

    Attributes:
        launch: the composed launch config (study, seeds, dry_run, max_parallel), its axes as restricted.
        whole_study: the study before its axes are restricted.
        launcher: name of the chosen ``hydra/launcher``.
        kinds: overrides by kind of experiment.
    """

    launch: Mapping[str, Any]
    whole_study: Mapping[str, Any]
    launcher: str
    kinds: Mapping[str, tuple[str, ...]]


@contextmanager
def hydra_configs() -> Iterator[None]:
    """Initialize Hydra with the config folder inside a ``with`` block."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        _composed.cache_clear()


def compose_config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose and resolve one config, inside ``hydra_configs``.

    Raises:
        ValueError: if Hydra does not accept an override; one line.
    """
    try:
        return plain_copy(_composed(name, tuple(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from None


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose one config, or return it from the cache.

    To compose one takes a tenth of a second.
    """
    return _plain(compose(name, list(overrides)), throw_on_missing=True)


def _plain(config: DictConfig, *, throw_on_missing: bool = False) -> dict[str, Any]:
    """Resolve a config to plain dicts, lists and scalars."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=throw_on_missing)
    return cast(dict[str, Any], plain)  # of a DictConfig


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar.

    Raises:
        ValueError: if one cannot be parsed; one line.
    """
    parsed = []
    for argument in arguments:
        if argument.startswith("-") or ("=" not in argument.lstrip("+~") and not argument.startswith("~")):
            raise ValueError(f"{argument}: settings are written key=value, such as dry_run=true")
        try:
            parsed += OverridesParser.create().parse_overrides([argument])
        except HydraException:
            raise ValueError(
                f"{argument}: not readable; quote what has spaces or brackets for the shell, such as 'seeds=[0,1]'"
            ) from None
    return parsed


def route_overrides(arguments: Sequence[str], *, study: str) -> RoutedOverrides:
    """Route overrides to the launch and to kinds of experiments, inside ``hydra_configs``.

    Args:
        arguments: the command line.
        study: the study, whose axes may be restricted.

    Raises:
        ValueError: if an override is wrong; one line with the override and the remedy.
    """
    overrides = parse_overrides(arguments)
    to_launch = [item for item in overrides if _belongs_to_launch(item)]
    rest = [item for item in overrides if not _belongs_to_launch(item)]
    launch, launcher = _compose_launch(_at_scale(study, rest), to_launch)
    whole_study, axes = plain_copy(launch["study"]), launch["study"]["axes"]
    for item in [item for item in rest if item.key_or_group in axes]:
        known = axes[item.key_or_group]
        values = values_of(item, options=[str(value) for value in known])
        # A value that is not in the study is itself the override.
        axes[item.key_or_group] = {str(v): known.get(str(v), {}) for v in values} if isinstance(known, dict) else values
    rest = [item for item in rest if item.key_or_group not in axes]
    for item in rest:
        _reject_reserved(item)
        if item.is_sweep_override():
            raise ValueError(
                f"{item.input_line}: a study sweeps over {', '.join([*axes, 'seeds'])} only: give one value"
            )
    return RoutedOverrides(launch, whole_study, launcher, _route_to_kinds(rest, extra=_keys(launch)))


def _at_scale(study: str, overrides: Sequence[Override]) -> str:
    """Return the name of the study's file.

    It is that of the chosen scale if there is one.
    """
    scales = [str(item.value()) for item in overrides if item.key_or_group == "scale"]
    named = f"{study}_{scales[-1]}" if scales else study
    return named if (CONF / "study" / f"{named}.yaml").is_file() else study


def check_overrides(kind: str, arguments: Sequence[str]) -> None:
    """Check the overrides of one experiment, inside ``hydra_configs``.

    In a sweep, those of its first experiment.

    Raises:
        ValueError: if an override is wrong; one line with the override and the remedy.
    """
    known = [
        item
        for item in parse_overrides(first_of_sweep(arguments))
        if not item.key_or_group.startswith(("hydra", "cluster."))
    ]
    routed = _route_to_kinds(known, extra=[], kinds=(kind,))
    compose_config(kind, routed[kind])


def first_of_sweep(arguments: Sequence[str]) -> list[str]:
    """Return the overrides of the first experiment of a sweep.

    Raises:
        ValueError: if an override cannot be parsed; one line.
    """
    overrides = parse_overrides(arguments)
    return [_first_of(item) if item.is_sweep_override() else _typed(item) for item in overrides]


def _first_of(item: Override) -> str:
    options = sorted(path.stem for path in (CONF / item.key_or_group).glob("*.yaml"))
    values_of(item, options=options)  # refuses what has no values
    found: Any = item.value()
    if isinstance(found, Glob):
        return f"{item.key_or_group}={found.filter(options)[0]}"
    return f"{_typed(item).split('=')[0]}={next(item.sweep_string_iterator())}"


def values_of(item: Override, *, options: Sequence[str]) -> list[Any]:
    """Return the different values of an override, in order.

    They are those of a list or of a sweep in Hydra's grammar: ``a,b``, ``choice``, ``range``, ``glob``, with ``sort``,
    ``shuffle`` and ``tag``.

    Args:
        item: the override.
        options: names from which ``glob`` chooses; empty if there are none.

    Raises:
        ValueError: if it has no values, or not plain ones; one line.
    """
    found: Any = item.value()
    values: list[Any]
    if isinstance(found, IntervalSweep):
        raise ValueError(f"{item.input_line}: an interval has no single values: write range(START,STOP,STEP) or a list")
    if isinstance(found, Glob):
        values = found.filter(list(options))
        if not values:
            there = f"none of {', '.join(options)} fits" if options else "there are no names to choose from"
            raise ValueError(f"{item.input_line}: {there}: write the values as a list")
    elif item.is_sweep_override():
        values = [value.text if isinstance(value, QuotedString) else value for value in item.sweep_iterator()]
    else:
        values = found if isinstance(found, list) else [found]
        values = [value.text if isinstance(value, QuotedString) else value for value in values]
    if not values or not all(value is None or isinstance(value, str | int | float) for value in values):
        what = "got a list or mapping as a value" if values else "got none"
        raise ValueError(f"{item.input_line}: {what}, expected at least one plain value, such as [a,b]")
    return list(dict.fromkeys(values))


@cache
def groups_of(kind: str) -> frozenset[str]:
    """Return the names of the config groups of a kind of experiment."""
    defaults = yaml.safe_load((CONF / f"{kind}.yaml").read_text(encoding="utf-8"))["defaults"]
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry]
    return frozenset(name for name in names if not name.startswith(("override", "optional")))


def has_key(config: Mapping[str, Any], dotted: str) -> bool:
    """Return whether a nested config has a dotted key."""
    node: Any = config
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _typed(item: Override) -> str:
    """Return an override as it was typed."""
    assert item.input_line is not None  # the parser sets it
    return item.input_line


def _belongs_to_launch(item: Override) -> bool:
    name = item.key_or_group
    if name == "seed":
        raise ValueError(f"{item.input_line}: a study has one copy a seed: write 'seeds=[...]'")
    of_launch = {"study", "seeds", "fair", "roots", "dry_run", "max_parallel", "cluster"}
    return name.split(".")[0] in of_launch or name.startswith("hydra")


def _compose_launch(study: str, overrides: Sequence[Override]) -> tuple[dict[str, Any], str]:
    texts = [_seeds(item) if item.key_or_group == "seeds" else _typed(item) for item in overrides]
    for item in overrides:
        if item.key_or_group == "study":
            raise ValueError(f"{item.input_line}: this script launches study={study}, others have their own")
    try:
        config = compose("launch", [f"study={study}", *texts], return_hydra_config=True)
        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        plain = {str(key): config[key] for key in config if key != "hydra"}
        return _plain(OmegaConf.create(plain)), launcher
    except (HydraException, OmegaConfBaseException) as error:
        launchers = {str(item.value()) for item in overrides if item.key_or_group == "hydra/launcher"} - {"local"}
        lonely = [item.input_line for item in overrides if item.key_or_group.startswith("cluster.") and not launchers]
        if lonely:
            raise ValueError(f"{lonely[0]}: only a cluster has such a setting: add hydra/launcher=slurm") from None
        unknown = [item for item in overrides if f"'{item.key_or_group}'" in str(error)]
        if unknown and not isinstance(error, MissingConfigException):
            raise ValueError(_unknown(unknown[0], [*LAUNCH_KEYS, *_cluster_keys()])) from None
        raise ValueError(_one_line(error)) from None


def _cluster_keys() -> list[str]:
    """Return all keys of a cluster."""
    described = yaml.safe_load((CONF / "hydra/launcher/slurm.yaml").read_text(encoding="utf-8"))
    return _keys({"cluster": described["cluster"]})


def _seeds(item: Override) -> str:
    """Return an override of the seeds, in any form, as ``seeds=[0,1]``."""
    return f"seeds=[{','.join(map(str, values_of(item, options=[])))}]"


def _reject_reserved(item: Override) -> None:
    if item.key_or_group.split(".")[0] == "weights":
        raise ValueError(
            f"{item.input_line}: a study chooses the weights itself;"
            " for released weights use uv run experiments/downstream.py"
        )


def _route_to_kinds(
    overrides: Sequence[Override], *, extra: Sequence[str], kinds: Sequence[str] = KINDS
) -> dict[str, tuple[str, ...]]:
    """Return the overrides of each kind of experiment.

    They are those whose group or key the kind has.
    """
    goes_to: dict[int, list[str]] = {index: [] for index in range(len(overrides))}
    candidates: list[str] = list(extra)
    for kind in kinds:
        choices = [
            (index, item)
            for index, item in enumerate(overrides)
            if item.key_or_group in groups_of(kind) and not isinstance(item.value(), dict)
        ]
        for _, item in choices:
            _check_choice(item)
        chosen = compose_config(kind, [_typed(item) for _, item in choices])
        candidates += [*groups_of(kind), *_keys(chosen)]
        for index, item in enumerate(overrides):
            key = item.key_or_group
            needed = key.rpartition(".")[0] if item.is_add() or item.is_force_add() else key
            if any(index == other for other, _ in choices) or not needed or has_key(chosen, needed):
                goes_to[index].append(kind)
    for index, item in enumerate(overrides):
        if not goes_to[index]:
            for other in set(KINDS) - set(kinds):
                if item.key_or_group in groups_of(other) or has_key(compose_config(other, []), item.key_or_group):
                    raise ValueError(f"{item.input_line}: {item.key_or_group} is a setting of {other} experiments only")
            raise ValueError(_unknown(item, candidates))
    return {
        kind: tuple(_typed(item) for index, item in enumerate(overrides) if kind in goes_to[index]) for kind in kinds
    }


def _check_choice(item: Override) -> None:
    options = sorted(path.stem for path in (CONF / item.key_or_group).glob("*.yaml"))
    if not item.is_delete() and str(item.value()) not in options:
        raise ValueError(f"{item.input_line}: no such choice: use one of {', '.join(options)}")


def _unknown(item: Override, candidates: Sequence[str]) -> str:
    """Return a message about an unknown key, with similar ones."""
    key = item.key_or_group
    group, _, name = key.partition(".")
    for path in sorted((CONF / group).glob("*.yaml")):
        if name and has_key(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, name):
            return f"{item.input_line}: only {group}={path.stem} has a setting {name}: add {group}={path.stem}"
    same_end = [other for other in candidates if other.endswith(f".{key.rpartition('.')[2]}")]
    close = difflib.get_close_matches(key, [*candidates], n=3, cutoff=0.7)
    meant = list(dict.fromkeys([*same_end, *close]))[:3]
    remedy = f"did you mean {' or '.join(meant)}?" if meant else "experiments/conf says what there is"
    return f"{item.input_line}: there is no setting {key}: {remedy}"


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return all dotted keys of a nested config."""
    keys = []
    for key, value in config.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def _one_line(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options:
        return f"{error.missing_cfg_file}: no such choice: use one of {', '.join(error.options)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith(("See https", "full_key", "object_type")))
