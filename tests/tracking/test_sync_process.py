"""A server that is away, and the process that syncs during a job."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from crisscross.tracking import client as mlflow_store
from crisscross.tracking.address import TrackingError
from crisscross.tracking.sync import sync_runs, unsynced_reason
from crisscross.tracking.sync_process import SyncProcess
from crisscross.utils.files import read_json
from tests.mlflow_server import Server
from tests.tracking.jobs import (
    EXPERIMENT,
    Job,
    all_runs,
    assert_history_once,
    client,
    evaluation,
    pretraining,
    send,
)


@pytest.fixture
def server(empty_store, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while(server, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [pretraining(tmp_path / "runs", seed=seed) for seed in range(3)]
    job = Job(runs[0])
    job.train(100, names=13)
    job.checkpoint()

    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="crisscross.tracking"):
        failures = sync_runs(runs, server.uri, EXPERIMENT).failures
    assert time.monotonic() - started < 60  # not MLflow's own patience, which is minutes
    assert [*failures] == [run.path for run in runs]
    assert len(caplog.records) == 1
    assert "refused" in caplog.text
    assert "3 of the runs wait" in caplog.text

    server.start()
    child = evaluation(runs[0])
    assert sync_runs([child, *runs], server.uri, EXPERIMENT).failures == {}
    job.train(50, names=13)
    job.checkpoint()

    lose_after = mlflow_store.Store.log_points

    def lose(self, run_id, points):
        lose_after(self, run_id, points[: len(points) // 2])  # the server is killed in the middle of a sync
        server.stop()
        lose_after(self, run_id, points)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store.Store, "log_points", lose)
        with pytest.raises(TrackingError, match=f"MLflow at {server.uri}: ") as caught:
            send(runs[0], server.uri)
    assert "\n" not in str(caught.value)

    job.finish()
    server.start()
    sent = send(runs[0], server.uri)
    assert sent.finished
    assert_history_once(runs[0], server.uri)
    (found,) = all_runs(server.uri, child)
    assert found["tags"]["mlflow.parentRunId"] == sent.run_id
    artifacts = {entry.path for entry in client(server.uri).list_artifacts(sent.run_id)}
    assert artifacts == {"config.yaml", "run.json", "result.json"}


def test_the_process_syncs_during_the_job_and_once_more_at_its_end(tmp_path, capfd):
    uri = f"sqlite:///{tmp_path}/mlflow.db"  # its tables are created by the process
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    started = time.monotonic()
    with SyncProcess([run], uri=uri, experiment=EXPERIMENT, interval_s=0.2, timeout_s=300) as process:
        assert time.monotonic() - started < 1
        job.train(5)
        job.checkpoint()
        for _ in range(300):
            if read_json(run.path / "tracking.json") and not unsynced_reason(run, uri=uri, experiment=EXPERIMENT):
                break
            time.sleep(0.1)
        assert_history_once(run, uri)
        job.train(5)
        job.finish()
    assert process.close(1) == []
    assert_history_once(run, uri)
    assert all_runs(uri, run)[0]["status"] == "FINISHED"
    assert capfd.readouterr() == ("", "")  # no migrations, no links, no git


def test_the_process_survives_the_job_just_long_enough(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(5)
    job.checkpoint()
    code = """
        import os, signal, sys
        from crisscross.run.run_dir import RunDirectory
        from crisscross.tracking.sync_process import SyncProcess

        runs = [RunDirectory.open(sys.argv[1])]
        process = SyncProcess(runs, uri=sys.argv[2], experiment="crisscross", interval_s=600)
        process.__enter__()
        print(process._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), run.path, uri]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    process = int(done.stdout)
    for _ in range(400):
        if not Path(f"/proc/{process}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the sync process did not end after its job")
    assert_history_once(run, uri)


def test_a_process_without_a_server_reports_what_waits(tmp_path, caplog, capfd):
    run = pretraining(tmp_path / "runs")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        process = SyncProcess([run], uri=uri, experiment=EXPERIMENT, interval_s=0.1)
        with process:
            time.sleep(1.5)
        (line,) = process.close(30)
    assert line == (f"{run.path.name}: it is not in MLflow yet; it waits in {run.path} for the next sync")
    assert capfd.readouterr().err.count("training continues") == 1
