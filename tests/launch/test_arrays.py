"""From graphs to arrays: few sbatch calls, right dependencies."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.arrays import Array, ArrayTask, Planner, compress_indices
from launch.study.graph import Experiment, Graph
from tests.launch.support import evaluation, pretraining


def _planner(size: int = 1001, **queued: ArrayTask) -> Planner:
    return Planner(lambda experiment: experiment.kind, size, queued)


def _planned(experiments: list[Experiment], size: int = 1001) -> list[tuple[str, str, str | None]]:
    arrays = _planner(size).plan(list(Graph(experiments)))
    for number, array in enumerate(arrays, start=1):
        array.job_id = str(number)
    return [(array.kind, array.indices, array.dependency) for array in arrays]


def test_evaluations_are_tied_to_their_pretrainings_index_by_index(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(5)]
    children = [evaluation(tmp_path, parent) for parent in parents]
    floor = evaluation(tmp_path, None)
    assert _planned([*parents, *children, floor]) == [
        ("pretrain", "0-4", None),
        ("downstream", "0", None),
        ("downstream", "0-4", "aftercorr:1"),
    ]


def test_several_evaluations_of_each_are_one_array_each(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(4)]
    children = [evaluation(tmp_path, parent, seed=seed) for parent in parents[1:] for seed in range(3)]
    assert _planned([*parents, *children]) == [
        ("pretrain", "0-3", None),
        *[("downstream", "1-3", "aftercorr:1")] * 3,
    ]


def test_many_evaluations_of_few_pretrainings_are_one_array_a_pretraining(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(2)]
    children = [evaluation(tmp_path, parent, seed=seed) for parent in parents for seed in range(7)]
    assert _planned([*parents, *children]) == [
        ("pretrain", "0-1", None),
        ("downstream", "0-6", "afterok:1_0"),
        ("downstream", "0-6", "afterok:1_1"),
    ]


def test_arrays_stay_below_the_sites_size(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(7)]
    children = [evaluation(tmp_path, parent) for parent in parents]
    assert _planned([*parents, *children], size=3) == [
        ("pretrain", "0-2", None),
        ("pretrain", "0-2", None),
        ("pretrain", "0", None),
        ("downstream", "0-2", "aftercorr:1"),
        ("downstream", "0-2", "aftercorr:2"),
        ("downstream", "0", "aftercorr:3"),
    ]


def test_what_is_queued_already_is_waited_for(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(3)]
    children = [evaluation(tmp_path, parent) for parent in parents]
    there = Array("pretrain", {}, job_id="77")
    queued = {parents[0].identity: ArrayTask(there, 4), parents[1].identity: ArrayTask(there, 9)}
    (array, new, last) = Planner(lambda experiment: experiment.kind, 1001, queued).plan([parents[2], *children])
    assert (new.indices, new.dependency) == ("4,9", "aftercorr:77")
    assert list(new.tasks.values()) == children[:2]
    array.job_id = "78"
    assert (last.indices, last.dependency) == ("0", "aftercorr:78")


def test_an_experiment_with_two_parents_waits_for_both(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(2)]
    child = Experiment("downstream", evaluation(tmp_path, None).config, tuple(parents))
    assert _planned([*parents, child])[-1] == ("downstream", "0", "afterok:1_0:1_1")


def test_a_parent_that_is_done_is_not_waited_for(tmp_path: Path) -> None:
    child = evaluation(tmp_path, pretraining(tmp_path))
    (array,) = _planner().plan([child])
    assert array.dependency is None


def test_a_thousand_experiments_are_a_handful_of_calls(tmp_path: Path) -> None:
    parents = [pretraining(tmp_path, seed=seed) for seed in range(500)]
    children = [evaluation(tmp_path, parent) for parent in parents]
    assert len(_planned([*parents, *children])) == 2


@pytest.mark.parametrize(
    ("indices", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([0, 1, 3, 7, 8], "0-1,3,7-8")]
)
def test_indices_as_slurm_writes_them(indices: list[int], text: str) -> None:
    assert compress_indices(indices) == text
