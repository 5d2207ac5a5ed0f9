"""The history in MLflow: each (metric, step) once, whatever was killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking import client as mlflow_store
from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import search_runs
from crisscross.tracking.sync import sync_runs, unsynced_reason
from crisscross.utils.files import read_json, write_json
from tests.tracking.jobs import (
    EXPERIMENT,
    Job,
    Sync,
    all_runs,
    assert_history_once,
    client,
    evaluation,
    pretraining,
    send,
)


def test_a_store_whose_creation_was_killed_is_created_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mlflow.db"
    code = "from crisscross.tracking.client import *; create_tables(Path('mlflow.db').resolve())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as making:
        while not list(tmp_path.glob(".mlflow.db.*.part")):
            assert making.poll() is None
            time.sleep(0.01)
        making.kill()
    assert not file.exists()
    run = pretraining(tmp_path / "runs")
    send(run, "sqlite:///mlflow.db")
    assert all_runs("sqlite:///mlflow.db", run)[0]["status"] == "SCHEDULED"


def test_only_what_a_checkpoint_covers_is_sent_and_only_once(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    assert send(run, uri) == Sync(send(run, uri).run_id, 0, False)
    assert all_runs(uri, run)[0]["status"] == "SCHEDULED"

    job = Job(run)
    run.write_progress(state="running", step=4, total=10)
    job.train(4)
    job.checkpoint()
    job.train(2)
    job.metrics_log.sync()
    assert send(run, uri).points_sent == 4 * 3
    assert send(run, uri).points_sent == 0
    assert_history_once(run, uri, lines=4)
    found = all_runs(uri, run)[0]
    assert found["status"] == "RUNNING"
    assert found["tags"]["crisscross.progress"] == "40 %"
    assert unsynced_reason(run, uri=uri, experiment=EXPERIMENT) == ""

    job.train(1)
    assert unsynced_reason(run, uri=uri, experiment=EXPERIMENT) == ""
    job.finish()
    assert "bytes of its history" in unsynced_reason(run, uri=uri, experiment=EXPERIMENT)
    sent = send(run, uri)
    assert (sent.points_sent, sent.finished) == (3 * 3, True)
    assert send(run, uri) == Sync(sent.run_id, 0, True)
    assert_history_once(run, uri)
    assert all_runs(uri, run)[0]["status"] == "FINISHED"
    assert unsynced_reason(run, uri=uri, experiment=EXPERIMENT) == ""


def test_points_keep_the_time_of_the_metrics_log(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(3)
    job.finish()
    sent = send(run, uri)
    times = [json.loads(line)["time_ms"] for line in run.metrics_path.read_text().splitlines()]
    assert [point.timestamp for point in client(uri).get_metric_history(sent.run_id, "loss/0")] == times


def test_a_resumed_run_whose_metrics_log_was_truncated(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(5)
    job.checkpoint()
    job.train(3)
    job.metrics_log.sync()
    send(run, uri)
    for _ in range(3):  # killed and started again: the steps after the checkpoint are written again, at other times
        job.resume()
        job.train(4)
        job.metrics_log.sync()
        send(run, uri)
    job.finish()
    send(run, uri)
    assert job.step == 9
    assert_history_once(run, uri)


def test_a_run_that_fell_back_to_an_older_checkpoint(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(5)
    older = job.checkpoint()
    job.train(5)
    job.checkpoint()
    send(run, uri)
    job.resume(older)
    job.train(2)
    job.checkpoint()
    assert send(run, uri).points_sent == 0
    job.train(4)
    job.finish()
    send(run, uri)
    assert_history_once(run, uri)


def test_more_points_than_one_call_takes(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(120, names=13)
    job.finish()
    assert send(run, uri).points_sent == 120 * 13
    assert_history_once(run, uri)


def in_another_process(function, *arguments) -> multiprocessing.Process:
    """Start a real process; forked, so that it need not import MLflow again."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def send_and_die(run: RunDirectory, uri: str) -> None:
    log_points, calls = mlflow_store.Store.log_points, []

    def die_after(self, run_id, points):
        log_points(self, run_id, points)
        calls.append(run_id)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    mlflow_store.Store.log_points = die_after
    send(run, uri)


def test_killed_between_sending_and_noting_it(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(200, names=13)
    job.finish(metrics={"eval/extra": 0.25})
    for _ in range(5):
        process = in_another_process(send_and_die, run, uri)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    else:
        pytest.fail("a sync that is killed in every second call must complete")
    assert send(run, uri).points_sent == 0
    (only,) = all_runs(uri, run)
    assert only["metrics"]["eval/extra"] == 0.25
    assert len(only["metrics"]) == 14
    for name in ("loss/0", "loss/12"):
        assert [point.step for point in client(uri).get_metric_history(only["run_id"], name)] == [*range(1, 201)]


def test_killed_between_making_the_run_and_noting_its_id(uri, tmp_path, monkeypatch):
    run = pretraining(tmp_path / "runs")
    make = mlflow_store.Store.create_run

    def die_after(self, *arguments, **options):
        make(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store.Store, "create_run", die_after)
        with pytest.raises(KeyboardInterrupt):
            send(run, uri)
    assert read_json(run.path / "tracking.json")["stores"].popitem()[1]["run_id"] == ""
    run_id = send(run, uri).run_id
    assert [found["run_id"] for found in search_runs("", uri=uri, experiment=EXPERIMENT)] == [run_id]


def test_result_metrics_that_the_history_lacks_are_sent_once(uri, tmp_path):
    child = evaluation(pretraining(tmp_path / "runs"))
    child.write_result({"metrics": {"eval/top1_v": 0.5, "eval/top1_av": 1.0}})
    assert send(child, uri).points_sent == 2
    notes = read_json(child.path / "tracking.json")
    notes["stores"].popitem()
    write_json(child.path / "tracking.json", notes)
    os.utime(child.path / "result.json", (1, 1))  # copied to another disk
    sent = send(child, uri)
    assert len(client(uri).get_metric_history(sent.run_id, "eval/top1_v")) == 1
    assert len(all_runs(uri, child)) == 1


def test_processes_at_once_make_one_run_in_a_store_that_was_not_there(tmp_path, capfd):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(150, names=13)
    job.finish()
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [in_another_process(send, run, uri) for _ in range(3)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert_history_once(run, uri)
    assert capfd.readouterr() == ("", "")


def test_a_store_that_was_deleted_is_filled_again(uri, tmp_path, monkeypatch):
    parent = pretraining(tmp_path / "runs")
    job = Job(parent)
    job.train(3)
    job.finish()
    child = evaluation(parent)
    child.write_result({"metrics": {"eval/top1_v": 0.5}})
    send(parent, uri), send(child, uri)
    (tmp_path / "mlflow.db").unlink()
    assert unsynced_reason(parent, uri=uri, experiment=EXPERIMENT) == "it is not in MLflow yet"
    assert sync_runs([child, parent], uri, EXPERIMENT).failures == {}
    assert_history_once(parent, uri)
    (found,) = all_runs(uri, child)
    assert found["tags"]["mlflow.parentRunId"] == all_runs(uri, parent)[0]["run_id"]


def test_verify_fills_a_store_that_was_replaced_by_an_older_copy(uri, tmp_path):
    run, other = pretraining(tmp_path / "runs"), pretraining(tmp_path / "runs", seed=1)
    for each in (run, other):
        job = Job(each)
        job.train(3)
        job.finish()
    assert sync_runs([run], uri, EXPERIMENT).num_due == 1
    older = (tmp_path / "mlflow.db").read_bytes()
    assert sync_runs([run, other], uri, EXPERIMENT).summary.endswith("brought up to date for 1 run(s)")
    (tmp_path / "mlflow.db").write_bytes(older)
    assert sync_runs([run, other], uri, EXPERIMENT).summary.endswith("is up to date")
    report = sync_runs([run, other], uri, EXPERIMENT, verify=True)
    assert (report.num_due, report.failures) == (1, {})
    assert sync_runs([run, other], uri, EXPERIMENT, verify=True).num_due == 0
    for each in (run, other):
        assert_history_once(each, uri)


def test_a_run_deleted_in_the_browser_is_restored_with_its_history(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(3)
    job.finish()
    run_id = send(run, uri).run_id
    client(uri).delete_run(run_id)
    assert send(run, uri).run_id == run_id
    assert_history_once(run, uri)


def test_one_damaged_run_directory_does_not_hold_up_the_others(uri, tmp_path):
    damaged, sound = pretraining(tmp_path / "runs"), pretraining(tmp_path / "runs", seed=1)
    (damaged.path / "durable.json").write_text("{")
    report = sync_runs([damaged, sound], uri, EXPERIMENT)
    assert [*report.failures] == [damaged.path]
    assert "is not JSON" in report.reason
    assert len(all_runs(uri, sound)) == 1
    gone = RunDirectory(tmp_path / "runs" / "gone")
    report = sync_runs([gone], uri, EXPERIMENT)
    assert "is no run directory" in report.reason


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mlruns", "tracking.uri=mlruns is no MLflow store: use sqlite:///FILE or http://HOST:PORT"),
        ("file:///tmp/mlruns", "is no MLflow store"),
        ("sqlite://", "names no file"),
    ],
)
def test_addresses_that_mlflow_does_not_take(address, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        send(pretraining(tmp_path / "runs"), address)


def test_reading_makes_nothing(tmp_path, uri):
    with pytest.raises(TrackingError, match="there is no such store"):
        search_runs("", uri=f"sqlite:///{tmp_path}/none.db", experiment=EXPERIMENT)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(TrackingError, match="no experiment crisscross"):
        search_runs("", uri=uri, experiment=EXPERIMENT)


def test_importing_is_light():
    code = "import sys, crisscross.tracking.sync_process; assert not {'mlflow', 'torch', 'pandas'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
