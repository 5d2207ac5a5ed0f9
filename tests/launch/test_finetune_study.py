"""Studies with fine-tunings and with evaluations along a pretraining."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crisscross.data import catalog
from crisscross.run.identity import group_hash
from crisscross.run.run_dir import RunDirectory
from launch.job.make_run import make_run
from launch.resources import num_processes
from launch.slurm.arrays import Planner
from launch.study.cluster import resource_kind
from launch.study.graph import Experiment
from launch.study.overrides import compose_config, hydra_configs
from launch.study.plan import Plan, make_plan
from tests.launch.test_study import _prepare

FINETUNING = 'study.downstream=[["downstream=finetune"],[]]'
UCF101 = ("downstream=finetune", "data=ucf101", "data.root=clips", "downstream.pretrained_on=kinetics400")


def _plan(*overrides: str) -> Plan:
    return make_plan("relaxation", ["relaxation=[mild]", *overrides], prepare=_prepare)


def _folded(*overrides: str) -> str:
    return f"study.downstream={json.dumps([[*UCF101, *overrides], []])}"


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


def test_an_epoch_that_will_not_be_kept_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"weights.epoch=7: the pretraining keeps epochs 0, 5, 22: choose one of these"
    ):
        _plan("training.keep_epochs=[5]", 'study.downstream=[["weights.epoch=7"]]')


def test_what_has_no_effect_and_other_sizes_are_printed_before_anything_runs() -> None:
    short = 'study.downstream=[["downstream=finetune","downstream.training.epochs=7"]]'
    plan = _plan("training.keep_epochs=[5,40]", short)
    assert [line.split(":")[0] for line in plan.warnings] == [
        "training.keep_epochs=[5,40]",
        "downstream.optim.groups.base.milestone_epochs=[6,10,14]",
    ]
    with pytest.raises(ValueError, match=r"model.video={.*} is not what the pretraining trains"):
        _plan('study.downstream=[["model=paper"]]')


def test_numbers_that_the_table_lacks_are_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"downstream.pretrained_on=demo, data.name=mine, downstream.frames=8: the paper"
    ):
        _plan('study.downstream=[["downstream=finetune","data.name=mine"]]')


def _folds(items: Iterable[Experiment]) -> list[list[int]]:
    return [item.config["data"]["folds"] for item in items]


def test_fine_tuning_on_several_folds_is_an_experiment_each_of_the_same_pretraining_and_the_floor() -> None:
    plan = _plan("relaxation=[mild,none]", "seeds=[0,1]", _folded())
    pretrainings = [item for item in plan.graph if item.kind == "pretrain"]
    assert len(pretrainings) == 4
    for pretraining in pretrainings:
        children = [item for item in plan.graph.dependents(pretraining) if item in _finetunings(plan)]
        assert _folds(children) == [[1], [2], [3]]
        assert {item.config["weights"]["run"] for item in children} == {str(pretraining.path)}
    floors = [item for item in _finetunings(plan) if not item.parents]
    assert _folds(floors) == [[1], [2], [3]] * 2  # of two seeds, whatever the relaxation
    assert floors[0].label == "untrained-s0-finetune-ucf101-fold1"
    assert len({item.identity for item in plan.graph}) == 4 + 4 * 4 + 2 * 4


def test_folds_can_be_chosen_and_are_checked_before_anything_runs() -> None:
    assert _folds(_finetunings(_plan(_folded("data.folds=[3,1]")))) == [
        *([3], [1]),
        *([3], [1]),
    ]
    for folds, complaint in (("[1,4]", r"data.folds=\[4\]: ucf101 has no fold 4"), ("[1,1]", "names a fold twice")):
        with pytest.raises(ValueError, match=complaint):
            _plan(_folded(f"data.folds={folds}"))


def test_an_entry_with_data_of_its_own_keeps_it_whatever_the_pretrainings_learn_from() -> None:
    typed = ("data=kinetics_sound", "data.root=sounds", "data.require=[video,audio]")
    plan = _plan(*typed, _folded().replace(', "downstream.pretrained_on=kinetics400"', ""))
    found = [(item.label, item.config["data"]["root"]) for item in plan.graph if item.config["seed"] == 0]
    assert found[:2] == [
        ("crisscross-mild-kinetics_sound-s0", "sounds"),
        ("crisscross-mild-kinetics_sound-s0-finetune-ucf101-fold1", "clips"),
    ]
    assert ("untrained-s0-svm-kinetics_sound", "sounds") in found  # an entry without
    tuned = _finetunings(plan)
    assert {item.config["downstream"]["pretrained_on"] for item in tuned} == {"kinetics_sound"}
    assert {tuple(item.config["data"]["require"]) for item in tuned} == {("video",)}


def test_the_folds_of_a_fine_tuning_are_one_family_and_those_of_others_are_not() -> None:
    whole, first = _plan(_folded()), _plan(_folded("data.folds=[1]"))
    assert len({group_hash(item.config, axes=("seed",)) for item in _finetunings(whole)}) == 1
    assert len({item.identity for item in _finetunings(whole)}) == 6
    assert whole.fingerprint == first.fingerprint  # folds that are added later belong to the same table
    svm = {"downstream": {"name": "svm"}, "data": {"fingerprint": "f", "folds": [1]}}
    other = {**svm, "data": {**svm["data"], "folds": [1, 2]}}
    assert group_hash(svm, axes=()) != group_hash(other, axes=())


def test_a_fold_typed_by_hand_is_the_one_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "prepare", lambda data: {**data, "fingerprint": "f" * 64})
    plan = _plan(_folded())
    pretraining = next(iter(plan.graph))
    RunDirectory.create(pretraining.kind, pretraining.config).write_result({"steps": 1, "metrics": {}})
    with hydra_configs():
        configs = [
            compose_config("downstream", [*UCF101, "data.folds=[2]", *weights])
            for weights in ([f"weights.run={pretraining.path}"], [])
        ]
    of_second_fold = [item for item in _finetunings(plan) if item.config["data"]["folds"] == [2]]
    assert [make_run("downstream", config).identity for config in configs] == [item.identity for item in of_second_fold]


def test_on_a_cluster_the_folds_are_arrays() -> None:
    plan = _plan("relaxation=[mild,none]", _folded(), "hydra/launcher=slurm")
    arrays = Planner(resource_kind, 1001, {}).plan(list(plan.graph))
    for number, array in enumerate(arrays):
        array.job_id = str(number)
    found = [(array.kind, array.indices, array.dependency) for array in arrays]
    assert [item for item in found if item[0] == "finetune"] == [
        ("finetune", "0-2", None),  # the floor
        ("finetune", "0-2", "afterok:0_0"),
        ("finetune", "0-2", "afterok:0_1"),
    ]


def test_batches_are_checked_by_fold_and_named_by_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "prepare", lambda data, progress: _prepare(data))
    checked = []
    monkeypatch.setattr(
        catalog,
        "check_batch",
        lambda config, node: checked.append(
            (node, config["data"]["train_split"], config["training"]["draws_per_clip"])
        ),
    )
    make_plan("relaxation", ["relaxation=[mild]", _folded(), "training.draws_per_clip=7"])
    fine_tuning = "downstream.training"
    assert checked == [("training", "train", 7), *((fine_tuning, f"train{fold}", 1) for fold in (1, 2, 3))]
