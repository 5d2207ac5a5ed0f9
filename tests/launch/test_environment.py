"""An environment that cannot run jobs is reported once, in one line, and marks no experiment as failed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from launch.environment import ENVIRONMENT_EXIT_CODE, UnusableEnvironmentError
from launch.slurm.job_status import read_status
from launch.slurm.preflight import check_imports
from launch.study.cluster import ClusterSettings
from launch.study.graph import Graph
from tests.launch.support import config_of, evaluation, make_runner, pretraining
from tests.launch.test_script import cluster_of
from tests.requirements import missing

REPOSITORY = Path(__file__).parents[2]

OLD_DRIVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *found = self ? dlsym(self, name) : 0;
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""
"""Source of a libcuda.so.1 that answers like driver 535, which supports CUDA 12.2."""


@pytest.mark.parametrize("end", ["unusable", "silent"])
def test_the_first_job_shows_it_before_the_others_start(tmp_path: Path, end: str) -> None:
    parent, other = pretraining(tmp_path), pretraining(tmp_path, seed=1)
    graph = Graph([evaluation(tmp_path, parent), other])
    runner, _ = make_runner(tmp_path, graph, {item.label: {"end": end} for item in graph}, slots=4)
    jobs = runner.run()
    assert runner.unusable == "libtorchaudio.so: undefined symbol: install it again"
    assert {job.state for job in jobs} == {"waiting"}
    assert sum(job.run.log_path.exists() for job in jobs) == 1
    for item in graph:
        assert RunDirectory(item.path).progress is None
        assert read_status(item.path).state == "not started"


def test_the_others_start_once_the_first_has_begun(tmp_path: Path) -> None:
    graph = Graph([pretraining(tmp_path, seed=seed) for seed in range(3)])
    runner, _ = make_runner(tmp_path, graph, {item.label: {"seconds": 1.0} for item in graph}, slots=3)
    jobs = runner.run()
    first, *others = sorted(jobs, key=lambda job: job.started)
    assert all(first.run.result["time"][0] <= job.started < first.ended for job in others)


def test_an_environment_that_breaks_on_the_way_keeps_what_is_done(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, parent), evaluation(tmp_path, parent, seed=1)])
    plan = {item.label: {"end": "unusable"} for item in graph if item.kind == "downstream"}
    runner, _ = make_runner(tmp_path, graph, plan, slots=1)
    jobs = runner.run()
    assert runner.unusable
    assert sorted(job.state for job in jobs) == ["done", "waiting", "waiting"]
    assert sum(job.run.log_path.exists() for job in jobs) == 2


def _job(run: RunDirectory, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.job", str(run.path)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    symbol = "undefined symbol: torch_exception_get_what_without_backtrace"
    (package / "__init__.py").write_text(f"raise OSError('Could not load this library: x.so') from OSError('{symbol}')")
    run = RunDirectory.create("pretrain", config_of(tmp_path))
    done = _job(run, PYTHONPATH=str(tmp_path))
    assert done.returncode == ENVIRONMENT_EXIT_CODE
    assert done.stderr.splitlines()[-1] == (
        f"what a job imports does not load: OSError: Could not load this library: x.so: {symbol}: install the versions"
        " that pyproject.toml fixes (remove .venv and uv.lock and run the command again), or see"
        ' "Another environment" in launch/README.md'
    )
    assert run.progress is None


def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        missing("there is no gcc to build a stand-in for the driver")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1"), "-ldl"],
        input=OLD_DRIVER,
        text=True,
        check=True,
    )
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: Tesla V100'\n")
    smi.chmod(0o755)
    run = RunDirectory.create(
        "pretrain", config_of(tmp_path, execution={"device": "auto", "num_devices": 1, "num_threads": 1})
    )
    done = _job(run, LD_LIBRARY_PATH=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == ENVIRONMENT_EXIT_CODE, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("this machine has a GPU, but PyTorch 2.11.0")
    assert "The NVIDIA driver on your system is too old (found version 12020): update the driver" in line
    assert run.progress is None


def _clusters_python(tmp_path: Path, text: str) -> list[str]:
    """Return a command of several words that runs shell lines and notes how it was called."""
    script = tmp_path / "enter.sh"
    script.write_text(f'echo "$@" >> {shlex.quote(str(tmp_path / "calls"))}\n{text}\n')
    return ["sh", str(script), "exec", "--nv", "image.sif", "python"]


def _check(tmp_path: Path, cluster: ClusterSettings, printed: list[str]) -> None:
    item = pretraining(tmp_path)
    check_imports(cluster, [item], code={"PYTHONPATH": "/code"}, runs_root=tmp_path, print_line=printed.append)


def test_jobs_that_could_not_import_are_not_submitted(tmp_path: Path) -> None:
    words = _clusters_python(tmp_path, "echo 'no torchaudio: install it' >&2; exit 78")
    cluster = cluster_of().model_copy(update={"python": words})
    with pytest.raises(
        UnusableEnvironmentError, match=r"^jobs could not run: no torchaudio: install it; nothing was submitted$"
    ):
        _check(tmp_path, cluster, [])
    assert (tmp_path / "calls").read_text() == "exec --nv image.sif python -m launch.environment pretrain --cuda\n"


def test_what_has_passed_is_not_tried_again(tmp_path: Path) -> None:
    cluster = cluster_of().model_copy(update={"python": _clusters_python(tmp_path, "exit 0")})
    for _ in range(2):
        _check(tmp_path, cluster, [])
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    _check(tmp_path, cluster.model_copy(update={"setup": ["module() { :; }", "module load cuda"]}), [])
    os.utime(tmp_path / "enter.sh", ns=(1, 1))  # another image
    _check(tmp_path, cluster, [])
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


def test_what_a_login_node_cannot_try_is_a_warning(tmp_path: Path) -> None:
    printed: list[str] = []
    _check(tmp_path, cluster_of().model_copy(update={"python": ["no-such-container", "exec", "image.sif"]}), printed)
    assert len(printed) == 1
    assert printed[0].startswith("warning: what jobs import could not be tried on this machine (")
    assert printed[0].endswith("): no-such-container exec image.sif")


def test_the_real_check_passes_here(tmp_path: Path) -> None:
    printed: list[str] = []
    cluster = cluster_of("cluster.resources.pretrain.gpus_per_node=null")
    check_imports(
        cluster,
        [pretraining(tmp_path)],
        code={"PYTHONPATH": str(REPOSITORY)},
        runs_root=tmp_path,
        print_line=printed.append,
    )
    assert printed == []
    assert (tmp_path / "slurm" / "environment.json").is_file()


@pytest.mark.parametrize(
    ("override", "command"),
    [
        ("cluster.python=/env/bin/python", "/env/bin/python"),
        ('cluster.python="apptainer exec --nv image.sif python"', "apptainer exec --nv image.sif python"),
        (
            "cluster.python=\"apptainer exec --bind='/my data' i.sif python\"",
            "apptainer exec '--bind=/my data' i.sif python",
        ),
        ("cluster.python=[apptainer,exec,my image.sif,python]", "apptainer exec 'my image.sif' python"),
        ("cluster.python='$SCRATCH/env/bin/python'", '"$SCRATCH/env/bin/python"'),
        ("cluster.python=null", shlex.quote(sys.executable)),
    ],
)
def test_the_command_of_python(override: str, command: str) -> None:
    assert cluster_of(override).python_command() == command


def test_a_path_with_spaces_is_one_word_if_it_is_a_file(tmp_path: Path) -> None:
    python = tmp_path / "my env" / "python"
    python.parent.mkdir()
    python.touch()
    assert cluster_of(f"cluster.python='{python}'").python_command() == f"'{python}'"
