"""The run directory of a single experiment, from the config that experiments/*.py compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.config.base import parse
from crisscross.config.evaluation import complete
from crisscross.config.experiment import (
    KINDS,
    DownstreamSettings,
    check_epoch_number,
    check_pretraining,
    ignored,
)
from crisscross.data import catalog
from crisscross.run.identity import identity, weights_hash
from crisscross.run.run_dir import RunDirectory, label_of, path_of
from launch.environment import import_libraries


def make_run(kind: str, config: dict[str, Any], *, warn: Callable[[str], None] = lambda text: None) -> RunDirectory:
    """Check a config, prepare its data, make or find its run directory.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config.
        warn: called with one line for each setting that has no effect.

    Raises:
        ValueError, OSError: if the config, a file or the pretraining that it names is wrong; one line.
        UnusableEnvironmentError: if the libraries of the experiment cannot be imported.
    """
    parents = []
    if kind == "downstream":
        parents = _parents_of(config["weights"])
        config = complete(config, pretrained_on=parents[0].config["data"]["name"] if parents else None)
        fingerprint = weights_hash(config["weights"]["video"], config["weights"]["audio"])
        if fingerprint is not None:  # without files no key: a study's evaluation of the same run has none either
            config["weights"] = {**config["weights"], "fingerprint": fingerprint}
    settings = parse(KINDS[kind], config)
    for parent in parents:
        check_pretraining(parent.config, config, label=f"weights.run={parent.label}")
    for line in ignored(settings):
        warn(line)
    config = {**config, "data": catalog.prepare(config["data"])}  # last: it may take a while
    if isinstance(settings, DownstreamSettings) and not _path_of(kind, config, parents).exists():
        import_libraries([kind])
        from crisscross.evaluation.backbones import check_files  # here: it imports torch

        check_files(settings)  # a wrong file must not leave a failed experiment behind
    return RunDirectory.create(kind, config, parents=parents)


def _path_of(kind: str, config: Mapping[str, Any], parents: Sequence[RunDirectory]) -> Path:
    """Return the folder of ``RunDirectory.create``."""
    run_identity = identity(kind, config, parents=[parent.identity for parent in parents])
    label = label_of(kind, config, parents=[parent.label for parent in parents])
    return path_of(kind, config, label=label, run_identity=run_identity)


def _parents_of(weights: Mapping[str, Any]) -> list[RunDirectory]:
    """Return the pretraining ``weights.run``, if there is one.

    Raises:
        ValueError: if it is no pretraining, or lacks the weights that are evaluated.
    """
    for name in ("run", "video", "audio"):
        if weights[name] == "":
            raise ValueError(f"weights.{name} is empty: give a path, or leave it out")
    if weights["run"] is None:
        if weights["epoch"] is not None:
            raise ValueError(f"weights.epoch={weights['epoch']} is an epoch of a pretraining: set weights.run, too")
        return []
    check_epoch_number(weights["epoch"])
    parent = RunDirectory.open(weights["run"])
    if parent.kind != "pretrain":
        raise ValueError(f"weights.run={weights['run']}: it is an evaluation: give the run directory of a pretraining")
    if weights["epoch"] is not None:
        from crisscross.evaluation.backbones import check_epoch  # here: it imports torch

        check_epoch(parent, weights["epoch"])
    elif parent.result is None:
        raise ValueError(
            f"weights.run={weights['run']}: not finished: run it first, or evaluate an epoch that it has kept already"
            " (weights.epoch=N)"
        )
    return [parent]
