from __future__ import annotations

from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from launch.study.graph import Experiment, Graph
from tests.launch.support import config_of, evaluation, pretraining


def test_parents_come_first_even_when_only_the_child_is_given(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    child = evaluation(tmp_path, parent)
    graph = Graph([child])
    assert list(graph) == [parent, child]
    assert graph.levels() == [[parent], [child]]
    assert graph.dependents(parent) == [child]
    assert graph.heights() == {parent.identity: 1, child.identity: 0}


def test_the_same_experiment_twice_is_one(tmp_path: Path) -> None:
    graph = Graph([pretraining(tmp_path), pretraining(tmp_path)])
    assert len(graph) == 1


def test_descendants_reach_over_levels(tmp_path: Path) -> None:
    first = pretraining(tmp_path)
    other = pretraining(tmp_path, seed=1)
    middle = Experiment("pretrain", config_of(tmp_path, seed=2), (first,))
    last = evaluation(tmp_path, middle)
    graph = Graph([last, other])
    assert graph.descendants(first) == [middle, last]
    assert graph.descendants(other) == []


def test_path_is_where_the_run_directory_is_made(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    child = evaluation(tmp_path, parent)
    made = RunDirectory.create("pretrain", parent.config)
    assert made.path == parent.path
    assert RunDirectory.create("downstream", child.config, parents=[made]).path == child.path
