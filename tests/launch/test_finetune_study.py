"""Studies with fine-tunings and with evaluations along a pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from launch.capacity import num_processes
from launch.cluster import resource_kind
from launch.graph import Experiment
from launch.study import Plan, make_plan
from tests.launch.test_study import _prepare

FINETUNING = 'study.downstream=[["downstream=finetune"],[]]'


def _plan(*overrides: str) -> Plan:
    return make_plan("relaxation", ["relaxation=[mild]", *overrides], prepare=_prepare)


def _finetunings(plan: Plan) -> list[Experiment]:
    return [item for item in plan.graph if item.config.get("downstream", {}).get("name") == "finetune"]


def _downstream(item: Experiment) -> Mapping[str, Any]:
    return item.config["downstream"]


def test_configs_are_completed_and_the_floor_is_fine_tuned_alike() -> None:
    evaluated, floor = _finetunings(_plan(FINETUNING))
    assert (len(evaluated.parents), len(floor.parents)) == (1, 0)
    assert _downstream(evaluated) == _downstream(floor)
    assert _downstream(floor)["pretrained_on"] == "demo"
    assert _downstream(floor)["training"]["global_batch_size"] == 16


def test_devices_are_for_what_trains() -> None:
    plan = _plan(FINETUNING, "execution.num_devices=2")
    assert {num_processes(item.config) for item in plan.graph if item.kind == "pretrain"} == {2}
    assert {num_processes(item.config) for item in _finetunings(plan)} == {2}
    others = [item for item in plan.graph if item.config.get("downstream", {}).get("name") == "svm"]
    assert {num_processes(item.config) for item in others} == {1}


def test_on_a_cluster_fine_tuning_has_resources_of_its_own() -> None:
    plan = _plan(FINETUNING, "hydra/launcher=slurm", "cluster.resources.finetune.tasks_per_node=4")
    assert {resource_kind(item) for item in _finetunings(plan)} == {"finetune"}
    assert {item.config["execution"]["num_devices"] for item in _finetunings(plan)} == {4}
    assert {resource_kind(item) for item in plan.graph} == {"pretrain", "downstream", "finetune"}


def test_evaluations_along_a_pretraining() -> None:
    plan = _plan("training.keep_epochs=[5]", 'study.downstream=[["weights.epoch=5"],["weights.epoch=0"],[]]')
    evaluations = [item for item in plan.graph if item.kind == "downstream"]
    assert [item.config["weights"]["epoch"] for item in evaluations] == [5, 0, None, None]  # one floor
    assert len({item.identity for item in evaluations}) == 4


def test_an_epoch_that_will_not_be_kept_is_told_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"weights.epoch=7: the pretraining keeps epochs 0, 5, 22: choose one of these"
    ):
        _plan("training.keep_epochs=[5]", 'study.downstream=[["weights.epoch=7"]]')


def test_what_has_no_effect_and_other_sizes_are_told_before_anything_runs() -> None:
    short = 'study.downstream=[["downstream=finetune","downstream.training.epochs=7"]]'
    plan = _plan("training.keep_epochs=[5,40]", short)
    assert [line.split(":")[0] for line in plan.warnings] == [
        "training.keep_epochs=[5,40]",
        "downstream.optim.groups.base.milestone_epochs=[6,10,14]",
    ]
    with pytest.raises(ValueError, match=r"weights.run=the study's pretraining: it was pretrained with model.video"):
        _plan('study.downstream=[["model=paper"]]')


def test_numbers_that_the_table_does_not_have_are_told_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"downstream.pretrained_on=demo, data.name=mine, downstream.frames=8: the paper"
    ):
        _plan('study.downstream=[["downstream=finetune","data.name=mine"]]')
