"""From a graph of experiments to Slurm arrays: which experiments go into one sbatch call, and what each call waits for.

Pure: nothing is asked of Slurm and nothing is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launch.study.graph import Experiment


@dataclass(eq=False)
class Array:
    """Experiments that one sbatch call submits: equal resources, equal dependency.

    Attributes:
        kind: which resources they ask for, see ``launch.study.cluster.resource_kind``.
        tasks: experiments by array index.
        after: what they wait for; None = nothing.
        job_id: Slurm's number, as soon as there is one.
    """

    kind: str
    tasks: Mapping[int, Experiment]
    after: After | None = None
    job_id: str | None = None

    @property
    def submitted_id(self) -> str:
        """Slurm's number.

        Raises:
            RuntimeError: there is none yet.
        """
        if self.job_id is None:
            raise RuntimeError(f"an array of {self.kind} jobs has no number yet")
        return self.job_id

    @property
    def indices(self) -> str:
        """The indices as Slurm writes them, such as ``0-3,7``."""
        return compressed(sorted(self.tasks))

    @property
    def dependency(self) -> str | None:
        """What sbatch is told of ``after``; asked for once the arrays before this one have their numbers."""
        return None if self.after is None else self.after.text


@dataclass(frozen=True)
class ArrayTask:
    """One task of an array: of a planned one, or of one that is in the queue already."""

    array: Array
    index: int

    @property
    def job_id(self) -> str:
        """As Slurm calls it."""
        return f"{self.array.submitted_id}_{self.index}"


@dataclass(frozen=True)
class After:
    """A dependency.

    Attributes:
        tasks: what must have succeeded before.
        by_index: the whole of an array, task i before task i (``aftercorr``); ``tasks`` is then empty.
    """

    tasks: tuple[ArrayTask, ...] = ()
    by_index: Array | None = None

    @property
    def text(self) -> str:
        """In the words of ``sbatch --dependency``."""
        if self.by_index is not None:
            return f"aftercorr:{self.by_index.submitted_id}"
        return ":".join(["afterok", *(task.job_id for task in self.tasks)])


@dataclass
class Planner:
    """Groups experiments into as few arrays as their dependencies allow.

    Attributes:
        kind_of: experiment -> kind of resources.
        max_array_size: indices of an array stay below it (``MaxArraySize`` of the site).
        queued: tasks of experiments that are in the queue already, by identity.
    """

    kind_of: Callable[[Experiment], str]
    max_array_size: int
    queued: Mapping[str, ArrayTask] = field(default_factory=dict)

    def plan(self, experiments: Sequence[Experiment]) -> list[Array]:
        """Return the arrays in the order in which they are to be submitted.

        Args:
            experiments: what is to be submitted, in topological order. A parent that is neither among them nor queued
                is taken to be done.
        """
        tasks = dict(self.queued)
        arrays: list[Array] = []
        for level in _levels(experiments):
            groups: dict[tuple[str, Array | tuple[ArrayTask, ...] | None], list[Experiment]] = {}
            for experiment in level:
                parents = tuple(tasks[parent.identity] for parent in experiment.parents if parent.identity in tasks)
                key = None if not parents else parents[0].array if len(parents) == 1 else parents
                groups.setdefault((self.kind_of(experiment), key), []).append(experiment)
            for (kind, key), members in groups.items():
                for array in self._arrays(kind, key, members, tasks):
                    arrays.append(array)
                    tasks.update({item.identity: ArrayTask(array, index) for index, item in array.tasks.items()})
        return arrays

    def _arrays(
        self,
        kind: str,
        key: Array | tuple[ArrayTask, ...] | None,
        members: Sequence[Experiment],
        tasks: Mapping[str, ArrayTask],
    ) -> Iterator[Array]:
        if not isinstance(key, Array):
            after = None if key is None else After(key)
            for first in range(0, len(members), self.max_array_size):
                yield Array(kind, dict(enumerate(members[first : first + self.max_array_size])), after)
            return
        by_parent: dict[int, list[Experiment]] = {}
        for member in members:
            parent = next(tasks[parent.identity] for parent in member.parents if parent.identity in tasks)
            by_parent.setdefault(parent.index, []).append(member)
        num_rounds = max(len(children) for children in by_parent.values())
        if num_rounds <= len(by_parent):  # an array a round, tied to the parents index by index
            for turn in range(num_rounds):
                chosen = {index: some[turn] for index, some in sorted(by_parent.items()) if turn < len(some)}
                yield Array(kind, chosen, After(by_index=key))
            return
        for index, children in sorted(by_parent.items()):  # an array a parent
            yield from self._arrays(kind, (ArrayTask(key, index),), children, tasks)


def _levels(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Experiments by the length of the chain before them, counting only those given."""
    depth: dict[str, int] = {}
    for experiment in experiments:
        depth[experiment.identity] = 1 + max(
            (depth.get(parent.identity, -1) for parent in experiment.parents), default=-1
        )
    levels: list[list[Experiment]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for experiment in experiments:
        levels[depth[experiment.identity]].append(experiment)
    return levels


def compressed(indices: Sequence[int]) -> str:
    """Write sorted numbers as Slurm does: ``[0, 1, 2, 5]`` is ``0-2,5``."""
    parts: list[str] = []
    first = last = None
    for index in [*indices, None]:
        if last is not None and index == last + 1:
            last = index
            continue
        if first is not None:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = index
    return ",".join(parts)
