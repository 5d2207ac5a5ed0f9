from __future__ import annotations

import json
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from crisscross import tracking
from crisscross.files import read_json, write_json
from crisscross.journal import Journal
from crisscross.run_directory import RunDirectory
from tests.mlflow_server import Server

EXPERIMENT = "crisscross"
STUDY = {"relaxation.0123abcd": {"study": "relaxation", "table": 3, "fingerprint": "0123abcd", "launched": 12.5}}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store with tables and nothing in them: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    tracking._import_client()
    tracking._make_tables(f"sqlite:///{folder}/mlflow.db", folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return "sqlite:///mlflow.db"


def pretraining(runs_root: Path, *, seed: int = 0, **changes) -> RunDirectory:
    config = {
        "scale": {"name": "demo"},
        "method": {"name": "crisscross", "async_weight": 1.0},
        "relaxation": "mild",
        "seed": seed,
        "data": {"name": "demo", "fingerprint": "f" * 64, "csv": None},
        "runs_root": str(runs_root),
        "tracking": {"uri": "https://ada:secret@mlflow.example.org"},
        **changes,
    }
    return RunDirectory.create("pretrain", config, studies=STUDY)


def evaluation(parent: RunDirectory) -> RunDirectory:
    config = {
        "scale": {"name": "demo"},
        "downstream": {"name": "svm", "modalities": ["v", "a", "av"]},
        "weights": {"run": str(parent.path), "video": None, "audio": None},
        "seed": 7,
        "data": {"name": "clips", "fingerprint": "e" * 64},
        "runs_root": str(parent.path.parents[1]),
    }
    return RunDirectory.create("downstream", config, parents=[parent], studies=STUDY)


class Job:
    """Writes a journal as training does: steps, checkpoints, and what a kill leaves behind."""

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.journal, self.step = run, None, 0
        self.resume()

    def resume(self, at: dict | None = None) -> None:
        if self.journal is not None:
            self.journal.close()
        durable = at or read_json(self.run.path / "durable.json") or {"step": 0, "metrics_bytes": 0}
        self.journal = Journal(self.run.metrics_path, resume_at=durable["metrics_bytes"])
        self.step = durable["step"]

    def train(self, steps: int, *, names: int = 3) -> None:
        for _ in range(steps):
            self.step += 1
            # Fractions that have no short decimal form: they must arrive as they are.
            self.journal.write(self.step, {f"loss/{k}": (self.step + k) / 7 for k in range(names)})
            time.sleep(0.001)

    def checkpoint(self) -> dict:
        durable = {"step": self.step, "metrics_bytes": self.journal.sync()}
        write_json(self.run.path / "durable.json", durable)
        return durable

    def finish(self, **result) -> None:
        self.checkpoint()
        self.journal.close()
        self.run.write_result({"steps": self.step, "metrics": {}, **result})


def send(run: RunDirectory, uri: str) -> tracking.Delivery:
    return tracking.deliver(run, uri=uri, experiment=EXPERIMENT)


def client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.absolute(uri))


def assert_history_once(run: RunDirectory, uri: str, *, lines: int | None = None) -> None:
    """Compare MLflow's history with the journal, point by point: all of it, each point once."""
    text = run.metrics_path.read_text().splitlines()[:lines]
    wanted = Counter()
    for line in map(json.loads, text):
        wanted.update((name, line["step"], value) for name, value in line["metrics"].items())
    (only,) = all_runs(uri, run)
    found = Counter()
    for name in only["metrics"]:
        history = client(uri).get_metric_history(only["run_id"], name)
        found.update((point.key, point.step, point.value) for point in history)
    assert found == wanted


def all_runs(uri: str, run: RunDirectory) -> list[dict]:
    return tracking.search_runs(f"tags.`crisscross.identity` = '{run.identity}'", uri=uri, experiment=EXPERIMENT)


def test_only_what_a_checkpoint_covers_is_sent_and_only_once(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    assert send(run, uri) == tracking.Delivery(send(run, uri).run_id, 0, False)
    assert all_runs(uri, run)[0]["status"] == "SCHEDULED"

    job = Job(run)
    run.write_progress(state="running", step=4, total=10)
    job.train(4)
    job.checkpoint()
    job.train(2)
    job.journal.sync()
    assert send(run, uri).points_sent == 4 * 3
    assert send(run, uri).points_sent == 0
    assert_history_once(run, uri, lines=4)
    found = all_runs(uri, run)[0]
    assert found["status"] == "RUNNING"
    assert found["tags"]["crisscross.progress"] == "40 %"
    assert tracking.pending(run, uri=uri, experiment=EXPERIMENT) == ""

    job.train(1)
    assert tracking.pending(run, uri=uri, experiment=EXPERIMENT) == ""
    job.finish()
    assert "bytes of its history" in tracking.pending(run, uri=uri, experiment=EXPERIMENT)
    delivery = send(run, uri)
    assert (delivery.points_sent, delivery.finished) == (3 * 3, True)
    assert send(run, uri) == tracking.Delivery(delivery.run_id, 0, True)
    assert_history_once(run, uri)
    assert all_runs(uri, run)[0]["status"] == "FINISHED"
    assert tracking.pending(run, uri=uri, experiment=EXPERIMENT) == ""


def test_points_keep_the_time_of_the_journal(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(3)
    job.finish()
    delivery = send(run, uri)
    times = [json.loads(line)["time_ms"] for line in run.metrics_path.read_text().splitlines()]
    assert [point.timestamp for point in client(uri).get_metric_history(delivery.run_id, "loss/0")] == times


def test_a_resumed_run_whose_journal_was_cut(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(5)
    job.checkpoint()
    job.train(3)
    job.journal.sync()
    send(run, uri)
    for _ in range(3):  # killed and started again: the steps after the checkpoint are written anew, at other times
        job.resume()
        job.train(4)
        job.journal.sync()
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
    log_points, calls = tracking._Store.log_points, []

    def die_after(self, run_id, points):
        log_points(self, run_id, points)
        calls.append(run_id)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    tracking._Store.log_points = die_after
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
        pytest.fail("a delivery that is killed in every second call should get to its end in the end")
    assert send(run, uri).points_sent == 0
    (only,) = all_runs(uri, run)
    assert only["metrics"]["eval/extra"] == 0.25
    assert len(only["metrics"]) == 14
    for name in ("loss/0", "loss/12"):
        assert [point.step for point in client(uri).get_metric_history(only["run_id"], name)] == [*range(1, 201)]


def test_killed_between_making_the_run_and_noting_its_id(uri, tmp_path, monkeypatch):
    run = pretraining(tmp_path / "runs")
    make = tracking._Store.create_run

    def die_after(self, *arguments, **options):
        make(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking._Store, "create_run", die_after)
        with pytest.raises(KeyboardInterrupt):
            send(run, uri)
    assert read_json(run.path / "tracking.json")["stores"].popitem()[1]["run_id"] == ""
    run_id = send(run, uri).run_id
    assert [found["run_id"] for found in tracking.search_runs("", uri=uri, experiment=EXPERIMENT)] == [run_id]


def test_result_metrics_that_the_history_lacks_are_sent_once(uri, tmp_path):
    child = evaluation(pretraining(tmp_path / "runs"))
    child.write_result({"metrics": {"eval/top1_v": 0.5, "eval/top1_av": 1.0}})
    assert send(child, uri).points_sent == 2
    notes = read_json(child.path / "tracking.json")
    notes["stores"].popitem()
    write_json(child.path / "tracking.json", notes)
    os.utime(child.path / "result.json", (1, 1))  # copied to another disk
    delivery = send(child, uri)
    assert len(client(uri).get_metric_history(delivery.run_id, "eval/top1_v")) == 1
    assert len(all_runs(uri, child)) == 1


def test_processes_at_once_make_one_run_in_a_store_that_was_not_there(tmp_path, capfd):
    tracking._import_client()
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
    assert tracking.pending(parent, uri=uri, experiment=EXPERIMENT) == "it is not in MLflow yet"
    assert tracking.deliver_all([child, parent], uri=uri, experiment=EXPERIMENT) == []
    assert_history_once(parent, uri)
    (found,) = all_runs(uri, child)
    assert found["tags"]["mlflow.parentRunId"] == all_runs(uri, parent)[0]["run_id"]


def test_a_run_deleted_in_the_browser_is_restored_with_its_history(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(3)
    job.finish()
    run_id = send(run, uri).run_id
    client(uri).delete_run(run_id)
    assert send(run, uri).run_id == run_id
    assert_history_once(run, uri)


def test_an_evaluation_is_the_child_of_its_pretraining_and_carries_what_that_was(uri, tmp_path):
    parent = pretraining(tmp_path / "runs", seed=3)
    child = evaluation(parent)
    send(child, uri)
    (found,), (above,) = all_runs(uri, child), all_runs(uri, parent)
    assert found["tags"]["mlflow.parentRunId"] == above["run_id"]
    wanted = {
        "kind": "downstream",
        "study": "relaxation",
        "study.relaxation.0123abcd": "1",
        "method": "crisscross",
        "relaxation": "mild",
        "seed": "3",
        "pretrain_data": "demo",
        "downstream_data": "clips",
        "protocol": "svm",
        "scale": "demo",
        "mlflow.runName": child.label,
    }
    assert wanted.items() <= found["tags"].items()
    assert "Table 3, row `mild`" in found["tags"]["mlflow.note.content"]
    assert "uv run python -m launch.job" in found["tags"]["mlflow.note.content"]
    assert found["params"]["downstream.modalities"] == '["v", "a", "av"]'


def test_untrained_backbones_have_no_relaxation(uri, tmp_path):
    config = {**evaluation(pretraining(tmp_path / "runs")).config}
    config["weights"] = {"run": None, "video": None, "audio": None}
    run = RunDirectory.create("downstream", config)
    send(run, uri)
    tags = all_runs(uri, run)[0]["tags"]
    assert tags["method"] == "untrained"
    assert not {"relaxation", "pretrain_data", "mlflow.parentRunId"} & tags.keys()


def test_no_password_reaches_mlflow(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="failed", error="the disk is full")
    run_id = send(run, uri).run_id
    (found,) = all_runs(uri, run)
    assert "tracking.uri" not in found["params"]
    kept = tmp_path / "mlruns" / EXPERIMENT / run_id / "artifacts" / "config.yaml"
    assert "mlflow.example.org" in kept.read_text()
    assert "secret" not in kept.read_text() + json.dumps(found)
    assert "secret" not in tracking.store_key("https://ada:secret@mlflow.example.org", EXPERIMENT)


def test_status_and_artifacts_follow_the_run_directory(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.log_path.write_text("first")
    run.write_progress(state="failed", error="clip 3 cannot be decoded")
    run_id = send(run, uri).run_id
    found = all_runs(uri, run)[0]
    assert (found["status"], found["tags"]["crisscross.error"]) == ("FAILED", "clip 3 cannot be decoded")
    run.write_progress(state="running", step=1, total=4)
    send(run, uri)
    found = all_runs(uri, run)[0]
    assert (found["status"], found["tags"]["crisscross.error"]) == ("RUNNING", "")
    run.write_progress(state="interrupted", step=1, total=4)
    send(run, uri)
    assert all_runs(uri, run)[0]["status"] == "KILLED"
    (run.path / "below").mkdir()
    (run.path / "below" / "predictions.csv").write_text("clip,label\n")
    run.log_path.write_text("first and last")
    run.write_result({"metrics": {}, "artifacts": ["below/predictions.csv", "../../outside.txt", "missing.csv"]})
    send(run, uri)
    assert all_runs(uri, run)[0]["status"] == "FINISHED"
    artifacts = tmp_path / "mlruns" / EXPERIMENT / run_id / "artifacts"
    found = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "run.json", "log.txt", "result.json", "below/predictions.csv"}
    assert (artifacts / "log.txt").read_text() == "first and last"


def test_a_job_killed_without_a_word_is_not_running_for_ever(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="running", step=1, total=4)
    progress = read_json(run.path / "progress.json")
    write_json(run.path / "progress.json", {**progress, "time": time.time() - 600})
    with run.lock():
        send(run, uri)
        assert all_runs(uri, run)[0]["status"] == "RUNNING"
    send(run, uri)
    assert all_runs(uri, run)[0]["status"] == "KILLED"


def test_the_last_word_waits_for_no_grace(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="running", step=1, total=4)
    with tracking.Courier([run], uri=uri, experiment=EXPERIMENT, timeout_s=60) as courier:
        pass
    assert courier.close(1) == []
    assert all_runs(uri, run)[0]["tags"]["crisscross.state"] == "interrupted"


def test_settings_of_execution_may_change_between_two_starts(uri, tmp_path):
    run = pretraining(tmp_path / "runs", execution={"num_threads": 2})
    send(run, uri)
    notes = read_json(run.path / "tracking.json")
    write_json(run.path / "tracking.json", {**notes, "stores": {}})  # so that all is sent again, to the same run
    RunDirectory.create("pretrain", {**run.config, "execution": {"num_threads": 4}})
    send(run, uri)
    (found,) = all_runs(uri, run)
    assert not any(key.startswith(("execution", "runs_root")) for key in found["params"])


def test_the_environment_is_that_of_the_job(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    send(run, uri)
    assert all_runs(uri, run)[0]["tags"]["env.python"] == platform.python_version()
    ran_on = {
        "python": "3.99",
        "platform": "Linux",
        "host": "node7",
        "packages": {"torch": "9.9"},
        "git": {"commit": "c" * 40, "dirty": True, "snapshot": "5" * 16},
        "slurm": {"SLURM_JOB_ID": "77"},
    }
    write_json(run.path / "environment.json", ran_on)
    (run.path / "code.diff").write_text("diff --git a/x b/x\n")
    run.write_result({"metrics": {}})
    run_id = send(run, uri).run_id
    wanted = {
        "env.python": "3.99",
        "env.host": "node7",
        "env.torch": "9.9",
        "env.av": "not installed",
        "git_commit": "c" * 40,
        "git_dirty": "true",
        "code_snapshot": "5" * 16,
        "slurm_job_id": "77",
    }
    assert wanted.items() <= all_runs(uri, run)[0]["tags"].items()
    artifacts = tmp_path / "mlruns" / EXPERIMENT / run_id / "artifacts"
    assert (artifacts / "environment.json").is_file()
    assert (artifacts / "code.diff").read_text() == "diff --git a/x b/x\n"


def test_a_study_joined_after_the_end_is_told(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_result({"metrics": {}})
    send(run, uri)
    another = {"relaxation.89abcdef": {**STUDY["relaxation.0123abcd"], "fingerprint": "89abcdef", "launched": 13.0}}
    RunDirectory.create("pretrain", run.config, studies=another)
    waits = "MLflow does not know yet of which studies it is part"
    assert tracking.pending(run, uri=uri, experiment=EXPERIMENT) == waits
    send(run, uri)
    assert tracking.pending(run, uri=uri, experiment=EXPERIMENT) == ""
    assert all_runs(uri, run)[0]["tags"]["study.relaxation.89abcdef"] == "1"
    tracking.mark_latest("relaxation", "89abcdef", uri=uri, experiment=EXPERIMENT)
    tags = tracking.experiment_tags(uri=uri, experiment=EXPERIMENT)
    assert tags["study.relaxation.latest"] == "89abcdef"
    assert tags["study.relaxation.0123abcd"] == "12.5"
    assert tags["study.relaxation.89abcdef"] == "13.0"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == "eval/top1_av"
    assert "launch/sweep_relaxation.py" in tags["mlflow.note.content"]


def test_one_damaged_run_directory_does_not_hold_up_the_others(uri, tmp_path):
    damaged, sound = pretraining(tmp_path / "runs"), pretraining(tmp_path / "runs", seed=1)
    (damaged.path / "durable.json").write_text("{")
    (failure,) = tracking.deliver_all([damaged, sound], uri=uri, experiment=EXPERIMENT)
    assert failure.run == damaged
    assert "is not JSON" in failure.reason
    assert len(all_runs(uri, sound)) == 1
    gone = RunDirectory(tmp_path / "runs" / "gone")
    (failure,) = tracking.deliver_all([gone], uri=uri, experiment=EXPERIMENT)
    assert "is no run directory" in failure.reason


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
    with pytest.raises(tracking.TrackingError, match="there is no such store"):
        tracking.search_runs("", uri=f"sqlite:///{tmp_path}/none.db", experiment=EXPERIMENT)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(tracking.TrackingError, match="no experiment crisscross"):
        tracking.search_runs("", uri=uri, experiment=EXPERIMENT)


def test_importing_is_light():
    code = "import sys, crisscross.tracking; assert not {'mlflow', 'torch', 'pandas'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
        failures = tracking.deliver_all(runs, uri=server.uri, experiment=EXPERIMENT)
    assert time.monotonic() - started < 15
    assert [failure.run for failure in failures] == runs
    assert len(caplog.records) == 1
    assert "refused" in caplog.text
    assert "3 of the runs wait" in caplog.text

    server.start()
    child = evaluation(runs[0])
    assert tracking.deliver_all([child, *runs], uri=server.uri, experiment=EXPERIMENT) == []
    job.train(50, names=13)
    job.checkpoint()

    lose_after = tracking._Store.log_points

    def lose(self, run_id, points):
        lose_after(self, run_id, points[: len(points) // 2])  # the server is killed in the middle of a delivery
        server.stop()
        lose_after(self, run_id, points)

    with monkeypatch.context() as patch:
        patch.setattr(tracking._Store, "log_points", lose)
        with pytest.raises(tracking.TrackingError, match=f"MLflow at {server.uri}: ") as caught:
            send(runs[0], server.uri)
    assert "\n" not in str(caught.value)

    job.finish()
    server.start()
    delivery = send(runs[0], server.uri)
    assert delivery.finished
    assert_history_once(runs[0], server.uri)
    (found,) = all_runs(server.uri, child)
    assert found["tags"]["mlflow.parentRunId"] == delivery.run_id
    artifacts = {entry.path for entry in client(server.uri).list_artifacts(delivery.run_id)}
    assert artifacts == {"config.yaml", "run.json", "result.json"}


def test_the_courier_delivers_beside_the_job_and_once_more_at_its_end(tmp_path, capfd):
    uri = f"sqlite:///{tmp_path}/mlflow.db"  # its tables are made by the courier
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    started = time.monotonic()
    with tracking.Courier([run], uri=uri, experiment=EXPERIMENT, interval_s=0.2, timeout_s=60) as courier:
        assert time.monotonic() - started < 1
        job.train(5)
        job.checkpoint()
        for _ in range(300):
            if read_json(run.path / "tracking.json") and not tracking.pending(run, uri=uri, experiment=EXPERIMENT):
                break
            time.sleep(0.1)
        assert_history_once(run, uri)
        job.train(5)
        job.finish()
    assert courier.close(1) == []
    assert_history_once(run, uri)
    assert all_runs(uri, run)[0]["status"] == "FINISHED"
    assert capfd.readouterr() == ("", "")  # no migrations, no links, no git


def test_the_courier_survives_the_job_just_long_enough(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    job = Job(run)
    job.train(5)
    job.checkpoint()
    code = """
        import os, signal, sys
        from crisscross.run_directory import RunDirectory
        from crisscross.tracking import Courier

        courier = Courier([RunDirectory.open(sys.argv[1])], uri=sys.argv[2], experiment="crisscross", interval_s=600)
        courier.__enter__()
        print(courier._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), run.path, uri]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    courier = int(done.stdout)
    for _ in range(400):
        if not Path(f"/proc/{courier}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the courier did not end after its job")
    assert_history_once(run, uri)


def test_a_courier_without_a_server_says_what_waits(tmp_path, caplog, capfd):
    run = pretraining(tmp_path / "runs")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        courier = tracking.Courier([run], uri=uri, experiment=EXPERIMENT, interval_s=0.1)
        with courier:
            time.sleep(1.5)
        (line,) = courier.close(30)
    assert line == (f"{run.path.name}: it is not in MLflow yet; it waits in {run.path} for the next delivery")
    assert capfd.readouterr().err.count("training goes on") == 1
