"""Experiments and their dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crisscross.run.identity import identity
from crisscross.run.run_dir import label_of, path_of


@dataclass(frozen=True, eq=False)
class Experiment:
    """One resolved config and the experiments whose results it uses.

    Attributes:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config, plain dicts, lists and scalars.
        parents: the experiments that must be done before.
        point: values of the study's axes; empty for a random-init baseline. Not part of the identity.
    """

    kind: str
    config: Mapping[str, Any]
    parents: tuple[Experiment, ...] = ()
    point: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """64 hexadecimal digits; see ``crisscross.run.identity``."""
        return identity(self.kind, self.config, parents=[parent.identity for parent in self.parents])

    @cached_property
    def label(self) -> str:
        """A readable name."""
        return label_of(self.kind, self.config, parents=[parent.label for parent in self.parents])

    @cached_property
    def path(self) -> Path:
        """Path of its run directory, which may not exist yet."""
        return path_of(self.kind, self.config, label=self.label, run_identity=self.identity)


@dataclass(frozen=True)
class Graph:
    """Experiments by identity, each after its parents. Equal experiments are one node.

    Attributes:
        experiments: the experiments; missing parents are added.
    """

    experiments: Iterable[Experiment]
    _nodes: dict[str, Experiment] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for experiment in self.experiments:
            self._add(experiment)
        object.__setattr__(self, "experiments", tuple(self._nodes.values()))

    def _add(self, experiment: Experiment) -> None:
        if experiment.identity not in self._nodes:
            for parent in experiment.parents:
                self._add(parent)
            self._nodes[experiment.identity] = experiment

    def __iter__(self) -> Iterator[Experiment]:
        """Iterate in topological order."""
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def dependents(self, experiment: Experiment) -> list[Experiment]:
        """Return the experiments that have this one as a parent."""
        return self._dependents.get(experiment.identity, [])

    @cached_property
    def _dependents(self) -> dict[str, list[Experiment]]:
        found: dict[str, list[Experiment]] = {}
        for other in self:
            for parent in {parent.identity for parent in other.parents}:
                found.setdefault(parent, []).append(other)
        return found

    def descendants(self, experiment: Experiment) -> list[Experiment]:
        """Return all that depend on this experiment, in topological order."""
        lost = {experiment.identity}
        for other in self:
            if any(parent.identity in lost for parent in other.parents):
                lost.add(other.identity)
        return [other for other in self if other.identity in lost and other.identity != experiment.identity]

    def levels(self) -> list[list[Experiment]]:
        """Return the experiments by the number of ancestors in line.

        Those of a level may run in parallel.
        """
        depth: dict[str, int] = {}
        for experiment in self:
            depth[experiment.identity] = 1 + max((depth[parent.identity] for parent in experiment.parents), default=-1)
        return [
            [experiment for experiment in self if depth[experiment.identity] == level]
            for level in range(max(depth.values(), default=-1) + 1)
        ]

    def heights(self) -> dict[str, int]:
        """Return the longest chain of dependents by identity.

        The highest should start first.
        """
        height: dict[str, int] = {}
        for experiment in reversed(list(self)):
            height[experiment.identity] = 1 + max(
                (height[other.identity] for other in self.dependents(experiment)), default=-1
            )
        return height
