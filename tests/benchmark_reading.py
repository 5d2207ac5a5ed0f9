"""How long it takes to read what the tables need: ``uv run python -m tests.benchmarks reading [NUM_RUNS]``.

A store of 10,000 runs (tests/large_store.py) is read by the tables' own code, by ``mlflow.search_runs``, which returns
one frame of everything, and page by page with ``MlflowClient``: once where all runs are of the studies that are
printed, once where a few are, and each through an `mlflow server` over the same file too. Every reading is a process of
its own, before which the file is dropped from the system's cache. A quarter of an hour, nearly all of it MLflow's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.large_store import EXPERIMENT, multiply, sync_template
from tests.mlflow_server import Server

STUDIES = ("async", "dataset_size", "relaxation", "methods", "retrieval")
FEW_SEEDS = 5
"""Seeds of the studies that are printed, where most runs are of older variants: about 200 runs."""
PAGE = 1000
ROUNDS = 3
"""Readings by our code, of which the median is printed; MLflow, which takes minutes, reads once."""


def main(num_runs: str = "10000") -> None:
    """Measure and print.

    Args:
        num_runs: in the store, at least.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "template").mkdir()
        template = sync_template(folder / "template", STUDIES)
        for title, seeds in (("all runs are of the studies", None), ("some 200 runs are of the studies", FEW_SEEDS)):
            here = folder / f"{seeds}"
            here.mkdir()
            file = here / "mlflow.db"
            count = multiply(template, file, num_runs=int(num_runs), seeds_per_variant=seeds)
            print(f"{count} runs, {file.stat().st_size / 1e6:.0f} MB of SQLite; {title}", flush=True)
            _compare(f"sqlite:///{file}", file, ways=tuple(WAYS))
            server = Server(here)
            server.start()
            try:
                print("  the same through an mlflow server", flush=True)
                _compare(server.uri, file, ways=SERVED_WAYS, server=psutil.Process(server.process.pid))
            finally:
                server.stop()
            file.unlink()


def _compare(uri: str, file: Path, *, ways: tuple[str, ...], server: psutil.Process | None = None) -> None:
    """Print a line for each way to read. CPU seconds, the server's included, hold on a busy machine too."""
    ours = None
    if server:
        _in_a_process(NOTHING, uri, file)  # a server imports half of itself when it is first asked
    for name in ways:
        before = _cpu_seconds(server)
        found = [_in_a_process(name, uri, file) for _ in range(ROUNDS if name == OURS and not server else 1)]
        cpu = statistics.median(one["cpu_s"] for one in found) + _cpu_seconds(server) - before
        read = statistics.median(one["read_s"] for one in found)
        ours = ours or (read, cpu)
        print(
            f"  {name:<44} {read:7.2f} s reading ({read / ours[0]:6.1f}x), {cpu:7.2f} s of CPU ({cpu / ours[1]:6.1f}x),"
            f" {statistics.median(one['import_s'] for one in found):5.2f} s imports, {found[0]['runs']:6d} runs",
            flush=True,
        )


def _cpu_seconds(process: psutil.Process | None) -> float:
    """Return the CPU's seconds that a process and its children have taken so far."""
    if process is None:
        return 0.0
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def _in_a_process(name: str, uri: str, file: Path) -> dict[str, float]:
    handle = os.open(file, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    code = f"from tests.benchmark_reading import measure; measure({name!r}, {uri!r})"
    patient = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}  # mlflow.search_runs asks for pages of 1,000 runs
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=patient)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, uri: str) -> None:
    """Read in one way and print what it took; run in a process of its own.

    Args:
        name: one of ``WAYS``.
        uri: MLflow's tracking URI.
    """
    began = time.perf_counter()
    read = {**WAYS, NOTHING: _nothing}[name](uri)
    imported, began_cpu = time.perf_counter(), time.process_time()
    runs = read()
    print(
        json.dumps(
            {
                "import_s": imported - began,
                "read_s": time.perf_counter() - imported,
                "cpu_s": time.process_time() - began_cpu,
                "runs": runs,
            }
        )
    )


def _ours(uri: str) -> Callable[[], int]:
    import pandas  # noqa: F401
    import sqlalchemy  # noqa: F401

    from analysis.runs import read_study

    if uri.startswith("http"):
        _mlflow(uri)

    def read() -> int:
        found = [read_study(uri, experiment=EXPERIMENT, study=study) for study in STUDIES]
        return sum(len(runs.evaluations) + len(runs.pretrainings) for runs in found)

    return read


def _client(uri: str) -> Callable[[], int]:
    from crisscross.tracking import query

    _mlflow(uri)
    query.read_runs = query.read_experiment = lambda *arguments, **options: None
    return _ours(uri)


def _everything(uri: str) -> Callable[[], int]:
    mlflow = _mlflow(uri)
    return lambda: len(mlflow.search_runs(experiment_names=[EXPERIMENT], max_results=100_000))


def _each_study(uri: str) -> Callable[[], int]:
    mlflow = _mlflow(uri)

    def read() -> int:
        tags = mlflow.get_experiment_by_name(EXPERIMENT).tags
        names = [f"study.{study}.{tags[f'study.{study}.latest']}" for study in STUDIES]
        found = [
            mlflow.search_runs(
                experiment_names=[EXPERIMENT], filter_string=f"tags.`{name}` LIKE '%'", max_results=100_000
            )
            for name in names
        ]
        return sum(map(len, found))

    return read


def _paged(uri: str) -> Callable[[], int]:
    mlflow = _mlflow(uri)

    def read() -> int:
        client = mlflow.MlflowClient()
        number = client.get_experiment_by_name(EXPERIMENT).experiment_id
        count, token = 0, None
        while token != "":
            page = client.search_runs([number], max_results=PAGE, page_token=token)
            count, token = count + len(page), page.token or ""
        return count

    return read


def _mlflow(uri: str):
    from crisscross.tracking.store import quiet_mlflow

    quiet_mlflow()
    import mlflow
    import pandas  # noqa: F401

    mlflow.set_tracking_uri(uri)
    return mlflow


def _nothing(uri: str) -> Callable[[], int]:
    mlflow = _mlflow(uri)
    return lambda: len(mlflow.search_runs(experiment_names=[EXPERIMENT], max_results=1))


OURS = "ours, all five studies"
NOTHING = "one run"
WAYS: dict[str, Callable[[str], Callable[[], int]]] = {
    OURS: _ours,
    "ours by MLflow's client, as it would be else": _client,
    "mlflow.search_runs, everything": _everything,
    "mlflow.search_runs, a filter for each study": _each_study,
    f"MlflowClient.search_runs, {PAGE} a page": _paged,
}
"""By name, what imports all that it needs and returns what reads and counts."""
SERVED_WAYS = (OURS, "mlflow.search_runs, a filter for each study")
