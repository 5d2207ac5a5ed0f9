"""A real Slurm for tests: one private cluster a pytest worker, started for the first test that needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.requirements import missing
from tests.slurm.cluster import SlurmCluster
from tests.slurm.daemons import what_is_missing
from tests.slurm.study import Study


@pytest.fixture(scope="session", autouse=True)
def _clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let all studies share their clips."""
    Study.data_root = tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running cluster with accounting. Skips where Slurm is not installed; in CI it fails instead."""
    if reason := what_is_missing():
        missing(reason)
    with SlurmCluster(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def idle_slurm(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster with an empty queue, all nodes up and its first settings; SLURM_CONF points to it."""
    slurm.restore()
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)  # pytest itself may run inside a Slurm job
    for name, value in slurm.environment().items():
        monkeypatch.setenv(name, value)
    path = os.environ["PATH"]
    yield slurm
    monkeypatch.setenv("PATH", path)
    slurm.cancel_everything()
