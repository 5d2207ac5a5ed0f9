"""Shared fixtures (an empty MLflow store, a small disk), and the number and order of parallel tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from crisscross.tracking.store import quiet_mlflow
from tests.leftovers import watched
from tests.requirements import missing
from tests.warm import stop_warm_python

ON_SLURM = (
    *("tracking", "preemption", "study", "outage", "refusals", "cluster", "multirun", "report", "data"),
    "submission_speed",
)
AT_WORK = (
    "test_environment.py",
    *("training/test_resume.py", "evaluation/test_finetune.py", "evaluation/test_matrix.py", "data/test_synthetic.py"),
    *("launch/test_local.py", "training/test_trainer.py", "tracking/test_sync.py", "data/test_staging.py"),
    "launch/test_run_single.py",
)

# Before PyTorch is imported: workers share the cores, and waiting OpenMP threads spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
quiet_mlflow()  # before MLflow is imported
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # tests start hundreds of processes, and each would compile again

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with & by a script: children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the workers of ``-n auto``: two more than cores, as tests on Slurm mostly wait."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: the slow ones first, waiting and computing ones in turn."""
    waiting = [f"slurm/test_{name}.py" for name in ON_SLURM]
    first = [name for name in chain(*zip_longest(waiting, AT_WORK)) if name]
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(first)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Exempt all imported objects from garbage collection: they stay until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def own_temporary_folder() -> Iterator[Path]:
    """A folder of this worker for ``tempfile``; its path is short, as sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="tests-", dir="/tmp"))
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    yield folder
    tempfile.tempdir = before[0]
    os.environ.pop("TMPDIR") if before[1] is None else os.environ.update(TMPDIR=before[1])
    # After multiprocessing has removed its own files there, with priority -100.
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, own_temporary_folder: Path
) -> Iterator[None]:
    where = {"mounts_below": tmp_path_factory.getbasetemp(), "temporary": own_temporary_folder}
    with watched(request.node.nodeid, **where) as left:
        yield
    if left:
        pytest.fail("left behind: " + "; ".join(left))


def pytest_sessionfinish() -> None:
    """Stop the warm interpreter."""
    stop_warm_python()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store with empty tables: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    from crisscross.tracking.client import create_tables

    create_tables(folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts an empty disk of a size such as ``"300k"``; needs the right to mount."""
    mounted = []

    def mount(size: str) -> Path:
        disk = tmp_path / f"disk {len(mounted)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            missing(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:  # lazily: a child of a job may still read it
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
