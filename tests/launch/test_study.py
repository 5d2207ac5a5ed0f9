from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from crisscross.run.run_dir import RunDirectory
from launch.main import main
from launch.study import overrides as overrides_module
from launch.study.graph import Graph
from launch.study.overrides import CONF, groups_of
from launch.study.plan import Plan, create_runs, make_plan

REPOSITORY = Path(__file__).parents[2]


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "fingerprint": "f" * 64}


def _plan(*arguments: str) -> Plan:
    return make_plan("relaxation", arguments, prepare=_prepare)


def _points(*arguments: str) -> list[dict[str, Any]]:
    """Return the configs of the pretrainings of a study."""
    return [dict(item.config) for item in _plan(*arguments).graph if item.kind == "pretrain"]


def _error(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:
        _plan(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("relaxation=glob(m*)", ["mild", "medium", "mixed"]),
        ("relaxation=glob(*,exclude=e*)", ["none", "mild", "medium", "mixed"]),
        ("relaxation=choice(none,mild)", ["none", "mild"]),
        ("relaxation=sort(none,mild)", ["mild", "none"]),
        ("relaxation=tag(a,choice(none,mild))", ["none", "mild"]),
        ("relaxation='none',\"mild\"", ["none", "mild"]),
        ("relaxation=none,none", ["none"]),
    ],
)
def test_an_axis_takes_every_sweep_of_hydra(override: str, values: list[str]) -> None:
    assert [point["relaxation"] for point in _points(override, "seeds=[0]")] == values


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seeds=range(2,5)", [2, 3, 4]),
        ("seeds=choice(4,1)", [4, 1]),
        ("seeds=sort(range(0,3),reverse=true)", [2, 1, 0]),
        ("seeds=3", [3]),
        ("seeds=1,2", [1, 2]),
    ],
)
def test_seeds_take_every_sweep_of_hydra(override: str, values: list[int]) -> None:
    assert [point["seed"] for point in _points(override, "relaxation=mild")] == values


def test_a_shuffled_range_has_the_same_seeds() -> None:
    assert {point["seed"] for point in _points("seeds=shuffle(range(0,4))", "relaxation=mild")} == {0, 1, 2, 3}


def test_the_relaxation_study_is_five_pretrainings_their_evaluations_and_the_floor() -> None:
    plan = _plan()
    assert [experiment.label for experiment in plan.graph] == [
        "crisscross-none-demo-s0",
        "crisscross-none-demo-s0-svm-demo",
        "crisscross-mild-demo-s0",
        "crisscross-mild-demo-s0-svm-demo",
        "crisscross-medium-demo-s0",
        "crisscross-medium-demo-s0-svm-demo",
        "crisscross-mixed-demo-s0",
        "crisscross-mixed-demo-s0-svm-demo",
        "crisscross-extreme-demo-s0",
        "crisscross-extreme-demo-s0-svm-demo",
        "untrained-s0-svm-demo",
    ]
    for experiment in plan.graph:
        parent = experiment.parents[0] if experiment.parents else None
        if experiment.kind == "downstream":
            run = str(parent.path) if parent else None
            assert experiment.config["weights"] == {"run": run, "epoch": None, "video": None, "audio": None}
        assert experiment.config["tracking"]["delivery"] == "deferred"


def test_a_copy_a_seed_with_the_same_seed_downstream() -> None:
    plan = _plan("seeds=[3,5]", "relaxation=mild")
    assert [(item.label, item.config["seed"]) for item in plan.graph if item.kind == "downstream"] == [
        ("crisscross-mild-demo-s3-svm-demo", 3),
        ("crisscross-mild-demo-s5-svm-demo", 5),
        ("untrained-s3-svm-demo", 3),
        ("untrained-s5-svm-demo", 5),
    ]


@pytest.mark.parametrize(
    "argument", ["relaxation=[mild,none]", "relaxation=mild,none", "study.axes.relaxation=[mild,none]"]
)
def test_an_axis_override_restricts_the_study(argument: str) -> None:
    chosen = [item.config["relaxation"] for item in _plan(argument).graph if item.kind == "pretrain"]
    assert chosen == ["mild", "none"]


def test_overrides_go_where_there_is_such_a_setting() -> None:
    plan = _plan(
        "training.epochs=7", "downstream.num_folds=4", "tracking.uri=http://127.0.0.1:9", "data.toy.num_classes=3"
    )
    for experiment in plan.graph:
        config = experiment.config
        assert config["tracking"]["uri"] == "http://127.0.0.1:9"
        assert config["data"]["toy"]["num_classes"] == 3
        assert config.get("training", {"epochs": 7})["epochs"] == 7
        assert config.get("downstream", {"num_folds": 4})["num_folds"] == 4


def test_a_group_goes_to_every_kind_that_has_it(tmp_path: Path) -> None:
    plan = _plan("scale=paper", "data=folder", f"data.root={tmp_path}", "training=demo")
    assert {item.config["scale"]["name"] for item in plan.graph} == {"paper"}
    assert {item.config["data"]["kind"] for item in plan.graph} == {"folder"}
    assert {item.config["model"]["video"]["depth"] for item in plan.graph} == {18}
    demo = yaml.safe_load((CONF / "training" / "demo.yaml").read_text())
    assert {item.config["training"]["epochs"] for item in plan.graph if item.kind == "pretrain"} == {demo["epochs"]}


def test_data_is_prepared_once() -> None:
    asked: list[Mapping[str, Any]] = []

    def prepare(data: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(data)
        return _prepare(data)

    make_plan("relaxation", ["seeds=[0,1]"], prepare=prepare)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relaxatoin=mild"], "relaxatoin=mild: there is no setting relaxatoin: did you mean relaxation?"),
        (["epochs=3"], "epochs=3: there is no setting epochs: did you mean training.epochs?"),
        (["scale=huge"], "scale=huge: no such choice: use one of demo, paper"),
        (["data.csv=x"], "data.csv=x: only data=folder has a setting csv: add data=folder"),
        (["data=folder"], "data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE"),
        (
            ["relaxation=mild,strong"],
            "relaxation=strong is unknown: choose one of"
            " none, mild, medium, mixed, extreme, video_extreme, audio_extreme",
        ),
        (["seed=3"], "seed=3: a study has one copy a seed: write 'seeds=[...]'"),
        (["seeds=[x]"], "seeds.0=x: expected a whole number"),
        (["seeds=[]"], "seeds=[]: got none, expected at least one plain value, such as [a,b]"),
        (
            ["seeds=interval(0,3)"],
            "seeds=interval(0,3): an interval has no single values: write range(START,STOP,STEP) or a list",
        ),
        (["seeds=glob(*)"], "seeds=glob(*): there are no names to choose from: write the values as a list"),
        (["seeds=range(3,1)"], "seeds=range(3,1): got none, expected at least one plain value, such as [a,b]"),
        (
            ["relaxation=glob(x*)"],
            "relaxation=glob(x*): none of none, mild, medium, mixed, extreme fits: write the values as a list",
        ),
        (
            ["relaxation=interval(0,1)"],
            "relaxation=interval(0,1): an interval has no single values: write range(START,STOP,STEP) or a list",
        ),
        (
            ["relaxation=[[none]]"],
            "relaxation=[[none]]: got a list or mapping as a value, expected at least one plain value, such as [a,b]",
        ),
        (["max_parallel=0"], "max_parallel=0: expected more than 0"),
        (["dry_run=maybe"], "dry_run=maybe: expected true or false"),
        (["dryrun=true"], "dryrun=true: there is no setting dryrun: did you mean dry_run?"),
        (["--dry-run"], "--dry-run: settings are written key=value, such as dry_run=true"),
        (["dry_run"], "dry_run: settings are written key=value, such as dry_run=true"),
        (
            ["training.epochs=3,4"],
            "training.epochs=3,4: a study sweeps over relaxation, seeds only: give one value",
        ),
        (["study=async"], "study=async: this script launches study=relaxation, others have their own"),
        (
            ["weights.video=x.pt"],
            "weights.video=x.pt: a study chooses the weights itself;"
            " for released weights use uv run experiments/downstream.py",
        ),
        (["study.floors=false"], "study.floors=false: there is no setting study.floors: did you mean study.floor?"),
        (["+study.axes.colour=[red]"], "study.axes.colour: no experiment has a setting colour"),
        (
            ["training.global_batch_size=10", "training.micro_batch_size=4"],
            "training.micro_batch_size=4 does not divide training.global_batch_size=10: choose a divisor",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(arguments: list[str], message: str) -> None:
    assert _error(*arguments) == message


def test_the_fingerprint_is_of_what_the_launches_have_in_common() -> None:
    one = _plan().fingerprint
    assert len(one) == 8
    for same in (
        ["seeds=[1,2]"],
        ["relaxation=mild"],
        ["study.floor=false"],
        ["max_parallel=1"],
        ["execution.num_threads=2"],
    ):
        assert _plan(*same).fingerprint == one
    for other in (["training.epochs=7"], ["downstream.num_folds=4"], ["scale=paper"]):
        assert _plan(*other).fingerprint != one


def test_identities_do_not_depend_on_the_order_of_overrides() -> None:
    one = _plan("training.epochs=7", "downstream.num_folds=4")
    other = _plan("downstream.num_folds=4", "training.epochs=7")
    assert [item.identity for item in one.graph] == [item.identity for item in other.graph]


def test_an_axis_may_be_a_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    study = yaml.safe_load((conf / "study" / "relaxation.yaml").read_text())
    (conf / "study" / "size.yaml").write_text(
        yaml.safe_dump({**study, "name": "size", "axes": {"optim": ["demo", "paper"]}})
    )
    monkeypatch.setattr(overrides_module, "CONF", conf)
    groups_of.cache_clear()
    plan = make_plan("size", [], prepare=_prepare)
    pretrainings = [item for item in plan.graph if item.kind == "pretrain"]
    assert len(pretrainings) == 2
    assert pretrainings[0].config["optim"] != pretrainings[1].config["optim"]
    assert len([item for item in plan.graph if not item.parents and item.kind == "downstream"]) == 1


def test_run_directories_know_their_study_and_follow_the_last_launch(tmp_path: Path) -> None:
    arguments = (f"runs_root={tmp_path}", "relaxation=mild")
    plan = _plan(*arguments, "execution.max_steps_this_launch=3")
    runs = create_runs(plan, launched=12.0)
    expected = {"study": "relaxation", "table": 3, "fingerprint": plan.fingerprint, "launched": 12.0}
    expected["script"] = "launch/sweep_relaxation.py"
    for experiment in plan.graph:
        run = runs[experiment.identity]
        assert run.path == experiment.path
        assert run.about["studies"] == {plan.name: {**expected, "point": dict(experiment.point)}}
        assert experiment.point == ({"relaxation": "mild"} if experiment.parents or run.kind == "pretrain" else {})
        assert run.config["execution"]["max_steps_this_launch"] == 3
    again = create_runs(_plan(*arguments), launched=12.0)
    assert {run.path for run in again.values()} == {run.path for run in runs.values()}
    assert all(run.config["execution"]["max_steps_this_launch"] is None for run in again.values())


def test_a_mistake_costs_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("relaxation", arguments=["relaxatoin=mild"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: relaxatoin=mild: there is no setting relaxatoin: did you mean relaxation?\n"
    assert captured.out == ""


def test_launching_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "import launch.study, launch.console, launch.status, launch.cancel\n"
        "print(json.dumps([name for name in ('torch', 'mlflow', 'torchvision', 'pandas') if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_dry_run_makes_no_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.study.plan._prepare", _prepare)
    monkeypatch.setattr("launch.study.plan._check_batches", lambda composer, launch: None)
    monkeypatch.chdir(tmp_path)
    done = RunDirectory.create("pretrain", next(iter(_plan("relaxation=mild").graph)).config)
    done.write_result({"metrics": {}})
    before = sorted((tmp_path / "runs").rglob("*"))
    assert main("relaxation", arguments=["dry_run=true", "max_parallel=3"]) == 0
    assert sorted((tmp_path / "runs").rglob("*")) == before
    printed = capsys.readouterr().out
    assert "11 experiments (5 pretrainings, 6 evaluations), 1 done already; 3 at a time" in printed
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if "-demo" in line}
    assert lines["crisscross-mild-demo-s0"][1:] == ["pretrain", done.identity[:12], "done"]
    child = lines["crisscross-none-demo-s0-svm-demo"]
    assert (child[1], child[3:]) == ("downstream", ["waiting", "after", "crisscross-none-demo-s0"])
    assert "nothing was started, no run directory made" in printed


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_methods_are_compared_with_what_each_needs_or_with_the_same_for_all(scale: str) -> None:
    def configs(*more: str) -> dict[str, Mapping[str, Any]]:
        roots = ["roots.kinetics400=k", "roots.ucf101=u", "roots.esc50=e", "data=[kinetics400]"]
        arguments = [f"scale={scale}", *(roots if scale == "paper" else []), *more]
        graph = make_plan("methods", arguments, prepare=_prepare).graph
        return {item.config["method"]["name"]: item.config for item in graph if item.kind == "pretrain"}

    own, fair = configs(), configs("fair=true")
    assert set(own) == set(fair) == {"crisscross", "xdc", "avid", "cmacc", "supervised"}
    for node in ("training", "views", "model"):
        assert all(config[node] == fair["crisscross"][node] for config in fair.values())
    assert own["avid"]["training"] != fair["avid"]["training"]
    assert fair["avid"]["optim"] == own["avid"]["optim"]


def test_a_part_of_the_methods_shares_the_table_of_the_whole() -> None:
    whole, part = (make_plan("methods", more, prepare=_prepare) for more in ([], ["method=[avid,supervised]"]))
    assert part.name == whole.name
    assert len(part.graph) < len(whole.graph)
    other = make_plan("methods", ["training.epochs=5", "study.downstream=[[]]"], prepare=_prepare)
    assert other.name != whole.name
    sound = [item for item in part.graph if item.point == {"method": "supervised"} and item.kind == "downstream"]
    assert {tuple(item.config["downstream"].get("modalities", ("v",))) for item in sound} == {("v",)}


def test_several_studies_are_one_graph_in_which_what_they_share_is_run_once() -> None:
    from launch.reproduce_paper import STUDIES

    plans = [make_plan(study, [], prepare=_prepare) for study in STUDIES]
    graph = Graph(item for plan in plans for item in plan.graph)
    assert len(graph) < sum(len(plan.graph) for plan in plans)
    labels = [item.label for item in graph]
    for label in ("crisscross-mild-demo-s0", "crisscross_async0-mild-demo-s0"):  # with and without L_async
        assert labels.count(label) == 1


def test_a_dataset_without_a_folder_is_left_out_with_a_line() -> None:
    arguments = ["scale=paper", "data=kinetics_sound", "data.root=k", "roots.esc50=e", "relaxation=mild"]
    plan = make_plan("relaxation", arguments, prepare=_prepare)
    assert [line for line in plan.warnings if line.startswith("not evaluated on")] == [
        "not evaluated on ucf101: roots.ucf101 is not set (roots.ucf101=DIR adds it)",
        "not evaluated on hmdb51: roots.hmdb51 is not set (roots.hmdb51=DIR adds it)",
    ]
    assert {item.config["data"]["name"] for item in plan.graph if item.kind == "downstream"} == {
        "kinetics_sound",
        "esc50",
    }
    with pytest.raises(ValueError, match=r"roots.ucf101 is not set, nor is any other dataset"):
        make_plan("retrieval", ["scale=paper", "data=kinetics400", "data.root=k"], prepare=_prepare)
