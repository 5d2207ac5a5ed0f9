"""The scripts that sbatch is given, compared with golden files, and what Slurm's answers become."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crisscross.config.base import parse
from launch.slurm import commands
from launch.slurm.commands import SlurmError, check, clean_environment, slurm, submit
from launch.slurm.script import ScriptExecutor, script_text
from launch.study.cluster import ClusterSettings
from launch.study.overrides import compose_config, hydra_configs

GOLDEN = Path(__file__).with_name("golden")
ROOT = Path(__file__).parents[2]


def cluster_of(*overrides: str, launcher: str = "slurm") -> ClusterSettings:
    """Return a cluster's settings as a launch composes them."""
    with hydra_configs():
        config = compose_config("launch", [f"hydra/launcher={launcher}", *overrides])
    return parse(ClusterSettings, config["cluster"])


def _script(cluster: ClusterSettings, kind: str, **changes: Any) -> str:
    settings = {
        "command": ["-m", "launch.job", "--batch", "/scratch/my runs/slurm/0a1b"],
        "folder": Path("/scratch/my runs/slurm/0a1b"),
        "name": "relaxation.1a2b3c4d-pretrain",
        "cluster": cluster,
        "resources": cluster.resources_of(kind),
        "code": {"PYTHONPATH": "/scratch/my runs/code/ff00", "PYTHONSAFEPATH": "1"},
        "working_directory": Path("/scratch/my runs"),
    }
    return script_text(**{**settings, **changes})


@pytest.mark.parametrize(
    ("name", "launcher", "overrides", "kind", "changes"),
    [
        (
            "pretrain_array",
            "slurm",
            ["cluster.partition=gpu", "cluster.account=def-me", "cluster.setup=['module load cuda']"],
            "pretrain",
            {"array": "0-4,7", "afterwards": ["-m", "launch.job.requeue", "/scratch/my runs/slurm/0a1b"]},
        ),
        ("downstream_array", "slurm", [], "downstream", {"array": "1-3", "dependency": "aftercorr:12"}),
        (
            "trillium_pretrain",
            "trillium",
            [
                "cluster.scratch=null",
                "cluster.resources.pretrain.nodes=2",
                "+cluster.environment.NCCL_SOCKET_IFNAME=ib0",
            ],
            "pretrain",
            {"array": "0"},
        ),
        (
            "table",
            "slurm",
            ["cluster.resources.cpu.partition=cpu", "+cluster.additional_parameters.mail-type=FAIL"],
            "cpu",
            {"dependency": "afterany:12:13"},
        ),
    ],
)
def test_scripts_are_what_they_were(
    name: str, launcher: str, overrides: list[str], kind: str, changes: dict[str, Any]
) -> None:
    cluster = cluster_of("cluster.python=/env/bin/python", *overrides, launcher=launcher)
    text = _script(cluster, kind, **changes)
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("CRISSCROSS_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.stderr == ""


def test_a_switch_that_is_off_is_left_out() -> None:
    assert "requeue" not in _script(cluster_of("cluster.additional_parameters.requeue=false"), "cpu")


def test_scripts_are_rendered_where_there_is_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "#SBATCH --mem=1536MB" in _script(cluster_of("cluster.resources.cpu.mem_gb=1.5"), "cpu")


def test_submitit_refuses_a_parameter_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unavailable parameter\(s\): \['partitoin'\]"):
        ScriptExecutor(tmp_path).script("true", is_array=False, partitoin="gpu")


def test_no_private_name_of_submitit_is_imported() -> None:
    for path in (path for package in ("crisscross", "launch", "analysis") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("submitit"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("_")], path


def _fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, text: str) -> None:
    path = tmp_path / program
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_submitting_returns_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path, monkeypatch, "sbatch", "echo '4711;trillium'")
    assert submit(tmp_path / "script.sh") == "4711"


def test_slurms_reason_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = (
        "echo 'sbatch: error: invalid partition specified: gpux' >&2;"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1"
    )
    _fake(tmp_path, monkeypatch, "sbatch", refusal)
    expected = "invalid partition specified: gpux; Batch job submission failed: Invalid partition name specified"
    for ask in (submit, check):
        with pytest.raises(SlurmError) as error:
            ask(tmp_path / "script.sh")
        assert str(error.value) == expected


def test_nodes_that_are_busy_are_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path, monkeypatch, "sbatch", "echo 'allocation failure: Requested nodes are busy' >&2; exit 1")
    assert check(tmp_path / "script.sh") == "allocation failure: Requested nodes are busy"


def test_no_slurm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SlurmError, match="there is no Slurm on this machine \\(no squeue\\): launch from a login node"):
        slurm("squeue")


def test_a_controller_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path, monkeypatch, "squeue", "exec sleep 10")
    monkeypatch.setattr(commands, "SLURM_TIMEOUT_S", 0.1)
    with pytest.raises(SlurmError, match="squeue did not answer within 0 s: try again"):
        slurm("squeue")


def test_jobs_inherit_nothing_of_a_job_that_we_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("MY_OWN", "1")
    kept = clean_environment()
    assert kept["SLURM_CONF"] == "/etc/slurm.conf"
    assert kept["MY_OWN"] == "1"
    assert not {"SLURM_MEM_PER_NODE", "MASTER_PORT"} & kept.keys()
