"""Group a graph of experiments into Slurm arrays: the experiments and the dependency of each sbatch call.

Pure functions: nothing here calls Slurm or writes a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launch.study.graph import Experiment


@dataclass(eq=False)
class Array:
    """The experiments of one sbatch call: equal resources, equal dependency.

    Attributes:
        kind: kind of resources, see ``launch.study.cluster.resource_kind``.
        tasks: experiments by array index.
        after: the dependency; None = none.
        job_id: Slurm's number; None before the submission.
    """

    kind: str
    tasks: Mapping[int, Experiment]
    after: After | None = None
    job_id: str | None = None

    @property
    def submitted_id(self) -> str:
        """Slurm's number.

        Raises:
            RuntimeError: if the array is not submitted yet.
        """
        if self.job_id is None:
            raise RuntimeError(f"an array of {self.kind} jobs has no number yet")
        return self.job_id

    @property
    def indices(self) -> str:
        """The indices in Slurm's notation, such as ``0-3,7``."""
        return compress_indices(sorted(self.tasks))

    @property
    def dependency(self) -> str | None:
        """Value of ``sbatch --dependency``; the arrays in ``after`` must have their numbers."""
        return None if self.after is None else self.after.text


@dataclass(frozen=True)
class ArrayTask:
    """One task of an array, planned or queued."""

    array: Array
    index: int

    @property
    def job_id(self) -> str:
        """Slurm's name of the task: ``<array>_<index>``."""
        return f"{self.array.submitted_id}_{self.index}"


@dataclass(frozen=True)
class After:
    """A dependency.

    Attributes:
        tasks: tasks that must succeed before.
        by_index: an array whose task i must succeed before task i (``aftercorr``); ``tasks`` is then empty.
    """

    tasks: tuple[ArrayTask, ...] = ()
    by_index: Array | None = None

    @property
    def text(self) -> str:
        """Value of ``sbatch --dependency``."""
        if self.by_index is not None:
            return f"aftercorr:{self.by_index.submitted_id}"
        return ":".join(["afterok", *(task.job_id for task in self.tasks)])


@dataclass
class Planner:
    """Groups experiments into as few arrays as their dependencies allow.

    Attributes:
        kind_of: experiment -> kind of resources.
        max_array_size: exclusive limit of an array's indices (``MaxArraySize`` of the site).
        queued: tasks of experiments that are in the queue already, by identity.
    """

    kind_of: Callable[[Experiment], str]
    max_array_size: int
    queued: Mapping[str, ArrayTask] = field(default_factory=dict)

    def plan(self, experiments: Sequence[Experiment]) -> list[Array]:
        """Return the arrays in the order of their submission.

        Args:
            experiments: the experiments to submit, in topological order. A parent that is neither among them nor
                queued counts as done.
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
            for number in range(num_rounds):
                chosen = {index: some[number] for index, some in sorted(by_parent.items()) if number < len(some)}
                yield Array(kind, chosen, After(by_index=key))
            return
        for index, children in sorted(by_parent.items()):  # an array a parent
            yield from self._arrays(kind, (ArrayTask(key, index),), children, tasks)


def _levels(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Group experiments by the number of given ancestors in a row."""
    depth: dict[str, int] = {}
    for experiment in experiments:
        depth[experiment.identity] = 1 + max(
            (depth.get(parent.identity, -1) for parent in experiment.parents), default=-1
        )
    levels: list[list[Experiment]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for experiment in experiments:
        levels[depth[experiment.identity]].append(experiment)
    return levels


def compress_indices(indices: Sequence[int]) -> str:
    """Return sorted numbers in Slurm's notation: ``[0, 1, 2, 5]`` is ``0-2,5``."""
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
