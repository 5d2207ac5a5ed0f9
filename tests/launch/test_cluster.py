"""Clusters as the config files describe them, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from launch.study.cluster import RESOURCE_KINDS, ClusterSettings, Resources, check_one_kind
from launch.study.overrides import CONF, hydra_configs, parse_overrides
from launch.study.plan import make_plan
from tests.launch.test_script import cluster_of
from tests.launch.test_study import _prepare as fake_prepare

LAUNCHERS = sorted(path.stem for path in (CONF / "hydra/launcher").glob("*.yaml") if path.stem != "local")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_cluster_is_complete_and_serves_multirun_too(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    cluster = cluster_of(launcher=launcher)
    with hydra_configs():
        for kind in ("pretrain", "downstream"):
            config = compose(kind, [f"hydra/launcher={launcher}"], return_hydra_config=True)
            asked = OmegaConf.to_container(config.hydra.launcher, resolve=True)
            ours = cluster.resources_of(kind)
            assert asked["_target_"].endswith("SlurmLauncher")
            assert {key: asked[key] for key in ("nodes", "gpus_per_node", "timeout_min", "partition")} == {
                key: getattr(ours, key) for key in ("nodes", "gpus_per_node", "timeout_min", "partition")
            }


def _multirun(kind: str, *overrides: str) -> dict[str, Any]:
    with hydra_configs():
        config = compose(kind, ["hydra/launcher=slurm", *overrides], return_hydra_config=True)
        return OmegaConf.to_container(config.hydra.launcher, resolve=True)


def test_a_sweep_asks_for_what_its_kind_of_job_needs() -> None:
    minutes = [f"cluster.resources.{kind}.timeout_min={number}" for number, kind in enumerate(RESOURCE_KINDS, 1)]
    asked = {
        "pretrain": _multirun("pretrain", *minutes),
        "downstream": _multirun("downstream", *minutes),
        "finetune": _multirun("downstream", *minutes, "downstream=finetune"),
        "cpu": _multirun("downstream", *minutes, "execution.device=cpu"),
    }
    assert [asked[kind]["timeout_min"] for kind in RESOURCE_KINDS] == [1, 2, 3, 4]
    shared = ["cluster.partition=gpu", "cluster.account=me", "cluster.resources.finetune.partition=long"]
    assert _multirun("pretrain", *shared)["partition"] == "gpu"
    finetuning = _multirun("downstream", *shared, "downstream=finetune")
    assert (finetuning["partition"], finetuning["account"]) == ("long", "me")


def test_a_sweep_has_one_kind_of_job() -> None:
    check_one_kind(parse_overrides(["downstream=svm,linear", "seed=1,2"]))
    check_one_kind(parse_overrides(["downstream=finetune", "seed=1,2"]))
    with pytest.raises(ValueError, match=r"downstream=svm,finetune: the jobs of a sweep ask Slurm for the same"):
        check_one_kind(parse_overrides(["downstream=svm,finetune"]))


def test_the_template_explains_every_key() -> None:
    explained = yaml.safe_load((CONF / "hydra/launcher/template.yaml").read_text())["cluster"]
    assert set(explained) == set(ClusterSettings.model_fields)
    text = (CONF / "hydra/launcher/template.yaml").read_text().splitlines()
    assert set(explained["resources"]["pretrain"]) == set(Resources.model_fields)
    for key in [*explained, *explained["resources"]["pretrain"]]:
        lines = [line for line in text if line.split("#")[0].strip().startswith(f"{key}:")]
        assert all("#" in line or text[text.index(line) - 1].strip().startswith("#") for line in lines), key


def test_a_kind_may_have_a_partition_of_its_own() -> None:
    cluster = cluster_of("cluster.partition=gpu", "cluster.resources.cpu.partition=cpu", "cluster.account=a")
    assert cluster.resources_of("cpu").partition == "cpu"
    assert cluster.resources_of("pretrain").partition == "gpu"
    assert cluster.resources_of("cpu").account == "a"


def test_relative_folders_begin_at_scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    cluster = cluster_of(launcher="trillium")
    assert cluster.place("runs") == "/scratch/me/crisscross/runs"
    assert cluster.place("/else/where") == "/else/where"
    assert cluster.place_store("sqlite:///mlflow.db") == "sqlite:////scratch/me/crisscross/mlflow.db"
    assert cluster.place_store("http://login:5000") == "http://login:5000"
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ValueError, match=r"cluster.scratch=\$SCRATCH/crisscross: \$SCRATCH is not set"):
        cluster.place("runs")
    monkeypatch.chdir(tmp_path)
    assert cluster_of().place("runs") == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["cluster.partition=gpu"], "cluster.partition=gpu: only a cluster has such a setting: add hydra/launcher"),
        (["hydra/launcher=mars"], "hydra/launcher/mars: no such choice: use one of"),
        (
            ["hydra/launcher=slurm", "cluster.partitoin=gpu"],
            "cluster.partitoin=gpu: there is no setting cluster.partitoin: did you mean cluster.partition",
        ),
        (
            ["hydra/launcher=slurm", "cluster.signal_seconds=1"],
            "cluster.signal_seconds=1: expected 10 or more",
        ),
        (
            ["hydra/launcher=slurm", "cluster.resources.pretrain.nodes=0"],
            "cluster.resources.pretrain.nodes=0: expected",
        ),
        (["hydra/launcher=slurm", "execution.num_devices=4"], "execution.num_devices=4: on a cluster it is"),
        (["hydra/launcher=slurm", "cluster.resources.pretrain.tasks_per_node=3"], "cannot be shared by"),
        (["hydra/launcher=slurm", "cluster.resources.downstream.nodes=2"], "an evaluation is one process"),
        (["hydra/launcher=slurm", "tracking.delivery=direct"], "jobs cannot share the SQLite file"),
        (["hydra/launcher=submitit_slurm"], "hydra/launcher=submitit_slurm: it describes no cluster"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        make_plan("relaxation", overrides, prepare=fake_prepare)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_jobs_on_a_cluster_are_the_same_experiments() -> None:
    here = make_plan("relaxation", [], prepare=fake_prepare)
    there = make_plan(
        "relaxation", ["hydra/launcher=slurm", "cluster.resources.pretrain.nodes=2"], prepare=fake_prepare
    )
    assert [item.identity for item in here.graph] == [item.identity for item in there.graph]
    assert here.name == there.name
    config = next(iter(there.graph)).config
    assert config["execution"]["num_devices"] == 2
    assert config["tracking"]["delivery"] == "deferred"
    server = make_plan("relaxation", ["hydra/launcher=slurm", "tracking.uri=http://login:5000"], prepare=fake_prepare)
    assert server.config["tracking"]["delivery"] == "direct"
