"""The three ways into MLflow from a cluster end in the same history; and the study that nothing may break."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crisscross.utils.files import read_json
from tests.mlflow_server import Server
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import Study, assert_same_results, assert_synced_once, stop

pytestmark = pytest.mark.slow

SEED = 20261125
STRIKES = {"kill_a_process": 3, "requeue": 1, "lose_a_node": 1, "lose_server": 2}  # how often each, in any order
CHAOS_STUDY = ("relaxation=[none,mild]", "training.epochs=60")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.stop()


def test_jobs_sync_to_a_server_directly(tmp_path: Path, idle_slurm: SlurmCluster, server: Server) -> None:
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", f"tracking.uri={server.uri}"), idle_slurm)
    done = study.launch()
    assert f"open {server.uri} in a browser" in done.stdout
    study.wait_until_idle()
    assert_synced_once(study, uri=server.uri)
    assert not (study.folder / "mlflow.db").exists()
    assert study.table().count("| none") == 1


def test_deferred_runs_are_delivered_little_by_little(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", "training.epochs=40"), idle_slurm)
    study.launch("execution.checkpoint_minutes=0.02")
    run = study.run("pretrain/crisscross-none")
    study.wait_until_at_step(run, 50)
    process = stop(run)
    first = study.script("launch/sync.py").stdout
    assert "brought up to date for 2 run(s)" in first
    sent = _bytes_sent(run.path)
    assert sent > 0  # what a checkpoint covers is there while the job runs
    process.resume()
    study.wait_until_idle()
    assert _bytes_sent(run.path) > sent
    assert_synced_once(study)
    table = study.script("analysis/make_tables.py")
    assert table.returncode == 0
    assert "up to date" in study.script("launch/sync.py").stdout


def _bytes_sent(run_path: Path) -> int:
    (store,) = read_json(run_path / "tracking.json")["stores"].values()
    return store["metrics_bytes"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("undisturbed"), CHAOS_STUDY).compute_here()


class Chaos:
    """Strikes a study at random, always in the same order of draws."""

    def __init__(self, study: Study, cluster: SlurmCluster, server: Server) -> None:
        self.study, self.cluster, self.server = study, cluster, server
        self.random = random.Random(SEED)
        self.strikes = [name for name, count in STRIKES.items() for _ in range(count)]
        self.random.shuffle(self.strikes)

    def strike(self) -> None:
        """Do what happens on clusters, one thing every few seconds."""
        for name in self.strikes:
            time.sleep(self.random.uniform(1, 3))
            getattr(self, name)()

    def kill_a_process(self) -> None:
        """Kill any process of any job: a rank, a loader worker, a sync process."""
        folder = str(self.study.folder)
        found = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if "launch.job" in (command := " ".join(process.info["cmdline"] or []))
            and folder in command
            and "srun" not in command
        ]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(found), signal.SIGKILL)

    def requeue(self) -> None:
        """Requeue a running task."""
        rows = [row for row in self.cluster.squeue() if row["state"] == "RUNNING" and row["array_task_id"] != "N/A"]
        if rows:
            row = self.random.choice(rows)
            self.cluster.run("scontrol", "requeue", f"{row['array_job_id']}_{row['array_task_id']}")

    def lose_a_node(self) -> None:
        """Take a node down with everything on it, and bring it back."""
        name = self.random.choice(["n1", "n2", "n3"])
        self.cluster.kill_node(name)
        down = f"sinfo -h -n {name} -t down"
        self.study.wait_until(
            lambda: self.cluster.must(*down.split(), "-o", "%D") != "", what=f"{name} noticed as down"
        )
        self.cluster.start_node(name)

    def lose_server(self) -> None:
        """Kill the tracking server and start it with another number of workers."""
        self.server.stop()
        time.sleep(5)
        self.server.start(workers=self.random.choice([1, 2]))


def test_chaos(tmp_path: Path, idle_slurm: SlurmCluster, server: Server, undisturbed: Study) -> None:
    study = Study(tmp_path, (*CHAOS_STUDY, f"tracking.uri={server.uri}"), idle_slurm)
    done = study.launch("execution.checkpoint_minutes=0.02")
    assert "submitted 5 experiments in 4 sbatch call(s)" in done.stdout  # and the table
    chaos = Chaos(study, idle_slurm, server)
    first = study.run("pretrain/crisscross-none")
    study.wait_until_at_step(first, 5)
    idle_slurm.must(
        "scontrol", "requeue", read_json(first.path / "launches.json")[0]["slurm_job"]
    )  # one restart at least
    chaos.strike()
    print(f"seed {SEED}: {', '.join(chaos.strikes)}")
    for _ in range(4):  # launching again repairs what ended; without chaos one round is enough for each loss
        study.wait_until_idle()
        if all(run.result is not None for run in study.runs().values()):
            break
        study.launch("execution.checkpoint_minutes=0.02")
    assert study.launch().returncode == 0  # everything is done: the table
    assert_same_results(study, undisturbed)
    assert_synced_once(study, uri=server.uri)
    assert study.table() == undisturbed.table()
    assert sum(len(read_json(run.path / "launches.json")) for run in study.runs().values()) > 5
