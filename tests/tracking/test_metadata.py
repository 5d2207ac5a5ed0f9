"""Tags, status, parameters and files of a run in MLflow."""

from __future__ import annotations

import json
import platform
import time

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import store_key
from crisscross.tracking.metadata import tags
from crisscross.tracking.query import experiment_tags
from crisscross.tracking.sync import set_latest_tag, unsynced_reason
from crisscross.tracking.sync_process import SyncProcess
from crisscross.utils.files import read_json, write_json
from tests.tracking.jobs import (
    EXPERIMENT,
    STUDY,
    all_runs,
    client,
    evaluation,
    pretraining,
    send,
)


def test_an_evaluation_is_the_child_of_its_pretraining_and_has_its_tags(uri, tmp_path):
    parent = pretraining(tmp_path / "runs", seed=3)
    child = evaluation(parent)
    send(child, uri)
    (found,), (above,) = all_runs(uri, child), all_runs(uri, parent)
    assert found["tags"]["mlflow.parentRunId"] == above["run_id"]
    wanted = {
        "kind": "downstream",
        "study": "relaxation",
        "study.relaxation.0123abcd": '{"relaxation":"mild"}',
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
    assert "Table 3: relaxation `mild` (study relaxation, 0123abcd)" in found["tags"]["mlflow.note.content"]
    assert "uv run python -m launch.job" in found["tags"]["mlflow.note.content"]
    assert found["params"]["downstream.modalities"] == '["v", "a", "av"]'


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"test_split": "val"}, "clips (val)"),
        ({"test_split": "validation"}, "clips (validation)"),
        ({"kind": "kinetics400", "test_split": "val"}, "clips"),  # its test split
        ({"kind": "esc50", "test_split": "val"}, "clips (val)"),
    ],
)
def test_a_validation_split_is_named_as_the_data_of_an_evaluation(tmp_path, data, name):
    parent = pretraining(tmp_path / "runs")
    config = evaluation(parent).config
    child = RunDirectory.create("downstream", {**config, "data": {**config["data"], **data}}, parents=[parent])
    assert tags(child, child.config)["downstream_data"] == name


def test_the_clips_are_an_input_of_the_run_once(uri, tmp_path):
    parent = pretraining(tmp_path / "runs")
    data = {**parent.config["data"], "folds": [2]}  # the same clips, so the same dataset to MLflow
    child = RunDirectory.create("downstream", {**evaluation(parent).config, "data": data}, parents=[parent])
    for run, context in ((parent, "pretraining: train"), (child, "evaluation: train, test, fold 2")):
        run_id = send(run, uri).run_id
        (run.path / "tracking.json").unlink()  # sent again: nothing records that it was
        assert send(run, uri)
        (entry,) = client(uri).get_run(run_id).inputs.dataset_inputs
        data = run.config["data"]
        assert (entry.dataset.name, entry.dataset.digest) == (data["name"], data["fingerprint"][:36])
        assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", context)]
        assert json.loads(entry.dataset.source) == {"kind": "folder", "path": "clips"}


def test_untrained_backbones_have_no_relaxation(uri, tmp_path):
    config = {**evaluation(pretraining(tmp_path / "runs")).config}
    config["weights"] = {"run": None, "video": None, "audio": None}
    run = RunDirectory.create("downstream", config)
    send(run, uri)
    tags = all_runs(uri, run)[0]["tags"]
    assert tags["method"] == "untrained"
    assert not {"relaxation", "pretrain_data", "mlflow.parentRunId"} & tags.keys()


def test_parameters_are_few(uri, tmp_path):
    transform = {"crop_px": 32, "flip_probability": 0.5}
    run = pretraining(tmp_path / "runs", views={"video": {"num_frames": 8, "transform": transform}})
    send(run, uri)
    params = all_runs(uri, run)[0]["params"]
    assert params["views.video.num_frames"] == "8"
    assert json.loads(params["views.video.transform"]) == transform
    assert not any(name.startswith("views.video.transform.") for name in params)


def test_no_password_reaches_mlflow(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="failed", error="the disk is full")
    run_id = send(run, uri).run_id
    (found,) = all_runs(uri, run)
    assert "tracking.uri" not in found["params"]
    kept = tmp_path / "mlruns" / EXPERIMENT / run_id / "artifacts" / "config.yaml"
    assert "mlflow.example.org" in kept.read_text()
    assert "secret" not in kept.read_text() + json.dumps(found)
    assert "secret" not in store_key("https://ada:secret@mlflow.example.org", EXPERIMENT)


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


def test_a_killed_job_does_not_stay_running(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="running", step=1, total=4)
    progress = read_json(run.path / "progress.json")
    write_json(run.path / "progress.json", {**progress, "time": time.time() - 600})
    with run.lock():
        send(run, uri)
        assert all_runs(uri, run)[0]["status"] == "RUNNING"
    send(run, uri)
    assert all_runs(uri, run)[0]["status"] == "KILLED"


def test_the_last_sync_needs_no_stale_time(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_progress(state="running", step=1, total=4)
    with SyncProcess([run], uri=uri, experiment=EXPERIMENT, timeout_s=300) as process:
        pass
    assert process.close(1) == []
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
    assert all_runs(uri, run)[0]["tags"]["env.host"] == platform.node()
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
        "env.host": "node7",
        "env.torch": "9.9",
        "env.mlflow": "not installed",
        "git_commit": "c" * 40,
        "git_dirty": "true",
        "code_snapshot": "5" * 16,
        "slurm_job_id": "77",
    }
    assert wanted.items() <= all_runs(uri, run)[0]["tags"].items()
    artifacts = tmp_path / "mlruns" / EXPERIMENT / run_id / "artifacts"
    assert (artifacts / "environment.json").is_file()
    assert (artifacts / "code.diff").read_text() == "diff --git a/x b/x\n"


def test_a_study_joined_after_the_end_is_sent(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run.write_result({"metrics": {}})
    send(run, uri)
    another = {"relaxation.89abcdef": {**STUDY["relaxation.0123abcd"], "fingerprint": "89abcdef", "launched": 13.0}}
    RunDirectory.create("pretrain", run.config, studies=another)
    waits = "its studies are not in MLflow yet"
    assert unsynced_reason(run, uri=uri, experiment=EXPERIMENT) == waits
    send(run, uri)
    assert unsynced_reason(run, uri=uri, experiment=EXPERIMENT) == ""
    assert all_runs(uri, run)[0]["tags"]["study.relaxation.89abcdef"] == '{"relaxation":"mild"}'
    set_latest_tag("relaxation", "89abcdef", uri=uri, experiment=EXPERIMENT)
    tags = experiment_tags(uri=uri, experiment=EXPERIMENT)
    assert tags["study.relaxation.latest"] == "89abcdef"
    assert tags["study.relaxation.0123abcd"] == "12.5"
    assert tags["study.relaxation.89abcdef"] == "13.0"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == "eval/top1_av"
    assert "launch/sweep_relaxation.py" in tags["mlflow.note.content"]
