"""What an experiment and its runs carry for MLflow's pages alone; tests/ui looks at the pages."""

from __future__ import annotations

import json

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.query import experiment_tags, search_runs
from crisscross.tracking.ui import COLOR_OF_RELAXATION, UNTRAINED, VIEWS, view_tags
from tests.tracking.jobs import EXPERIMENT, STUDY, all_runs, client, evaluation, pretraining, send


def test_an_evaluation_has_relaxation_and_method_of_its_pretraining_as_axes_for_charts(uri, tmp_path):
    child = evaluation(pretraining(tmp_path / "runs", seed=3))
    send(child, uri)
    params = all_runs(uri, child)[0]["params"]
    assert (params["relaxation"], params["method.name"], params["seed"]) == ("mild", "crisscross", "7")


def test_untrained_networks_are_a_group_among_the_relaxations(uri, tmp_path):
    config = {**evaluation(pretraining(tmp_path / "runs")).config}
    for seed, video, group in ((0, None, UNTRAINED), (1, "v.pt", "released")):
        weights = {"run": None, "video": video, "audio": None}
        run = RunDirectory.create("downstream", {**config, "weights": weights, "seed": seed})
        send(run, uri)
        assert all_runs(uri, run)[0]["params"]["relaxation"] == group


def test_a_view_that_was_changed_in_the_browser_stays(uri, tmp_path):
    send(pretraining(tmp_path / "runs"), uri)
    tags = experiment_tags(uri=uri, experiment=EXPERIMENT)
    (found,) = {run["experiment_id"] for run in search_runs("", uri=uri, experiment=EXPERIMENT)}
    assert view_tags(found).items() <= tags.items()
    key = f"mlflow.sharedViewState.{VIEWS[0].key}"
    client(uri).set_experiment_tag(client(uri).get_experiment_by_name(EXPERIMENT).experiment_id, key, "changed")
    send(pretraining(tmp_path / "runs", seed=1), uri)
    assert experiment_tags(uri=uri, experiment=EXPERIMENT) == {**tags, key: "changed"}


def test_views_are_small_enough_for_a_tag_and_have_addresses_of_their_own():
    tags = view_tags("7")
    assert all(len(text) < 5000 for text in tags.values())  # MLflow's limit; 20000 in newer servers
    names = [json.loads(text)["name"] for key, text in tags.items() if key.startswith("mlflow.sharedViewState.")]
    assert names == [view.name for view in VIEWS]
    assert VIEWS[0].path("7") == "#/experiments/7/runs?viewStateShareKey=loss&compareRunsMode=CHART"


def test_the_colour_of_a_relaxation_is_given_once_and_only_where_relaxation_is_studied(uri, tmp_path):
    run = pretraining(tmp_path / "runs")
    run_id = send(run, uri).run_id
    assert all_runs(uri, run)[0]["tags"]["mlflow.runColor"] == COLOR_OF_RELAXATION["mild"]
    client(uri).set_tag(run_id, "mlflow.runColor", "#123456")
    run.write_result({"metrics": {}})
    send(run, uri)
    assert all_runs(uri, run)[0]["tags"]["mlflow.runColor"] == "#123456"
    sizes = {"dataset_size.1": {**STUDY["relaxation.0123abcd"], "study": "dataset_size", "point": {"data": "demo"}}}
    other = RunDirectory.create("pretrain", {**run.config, "seed": 1}, studies=sizes)
    send(other, uri)
    assert "mlflow.runColor" not in all_runs(uri, other)[0]["tags"]
