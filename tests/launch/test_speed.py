"""Planning, looking and stopping take a moment: nothing heavy is imported, and large studies cost little more.

Times are compared with those of an interpreter that imports the libraries that a launch cannot do without, on the same
machine at the same time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crisscross.run.state import read_state
from crisscross.tracking.address import store_key
from crisscross.tracking.metadata import STATUS_OF_STATE
from crisscross.tracking.sync_state import SyncState
from launch.study import overrides as overrides_module
from launch.study.plan import Plan, make_plan, register

REPOSITORY = Path(__file__).parents[2]
HEAVY = (
    *("torch", "torchvision", "torchaudio", "mlflow", "sklearn", "scipy", "pandas", "pyarrow", "av", "matplotlib"),
    *("numpy", "asyncio"),  # a tenth of a second each
)
TINY = (
    "data.toy.num_classes=2",
    "data.toy.train_clips_per_class=8",
    "data.toy.val_clips_per_class=0",
    "data.toy.test_clips_per_class=2",
    "data.toy.seconds=2.5",
    "data.toy.frame_size_px=32",
    "execution.device=cpu",
)
YARDSTICK = "import filelock, hydra, numpy, pydantic.types, rich.console, yaml"
SWEEP = "import sys; from launch.main import main; code = main('relaxation')"
STATUS = "import sys; from launch.status import main; code = main(sys.argv[1:])"
CANCEL = "import sys; from launch.cancel import main; code = main(sys.argv[1:])"


def _run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def _heavy_imports_of(code: str, *arguments: str) -> tuple[list[str], list[str]]:
    """Return what a script printed, and which heavy modules it imported."""
    asking = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    *lines, found = _run(asking, *arguments).splitlines()
    return lines, json.loads(found)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a study with prepared clips and run directories of which MLflow seems to have everything."""
    folder = tmp_path_factory.mktemp("speed")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    chosen = (*TINY, f"data.root={folder / 'data'}", f"runs_root={folder / 'runs'}", f"tracking.uri={uri}")
    plan = make_plan("relaxation", chosen)
    (folder / "mlflow.db").write_text("not empty")
    for run in register(plan, where="local").values():
        notes = SyncState(run, store_key(uri, "crisscross"))
        status = read_state(run)
        notes.sent.run_id, notes.sent.status = "1", STATUS_OF_STATE[status.state]
        notes.sent.tags = {"crisscross.state": status.state.in_progress_json, "crisscross.error": status.error}
        notes.save()
    return chosen


def _runs_root(study: tuple[str, ...]) -> str:
    return next(item for item in study if item.startswith("runs_root="))


@pytest.mark.parametrize("name", ["main", "console", "status", "cancel", "sync", "slurm.launch"])
def test_importing_is_light(name: str) -> None:
    assert _heavy_imports_of(f"import launch.{name}") == ([], [])


def test_a_dry_run_imports_nothing_heavy(study: tuple[str, ...]) -> None:
    lines, heavy = _heavy_imports_of(SWEEP, *study, "dry_run=true")
    assert lines[-1].startswith("dry_run: every config is valid")
    assert heavy == []


def test_a_dry_run_for_slurm_imports_nothing_heavy(study: tuple[str, ...]) -> None:
    lines, heavy = _heavy_imports_of(SWEEP, *study, "dry_run=true", "hydra/launcher=slurm")
    assert lines[-1].startswith("dry_run: every config is valid")
    assert heavy == ["asyncio"]  # which submitit brings along


def test_looking_imports_nothing_heavy(study: tuple[str, ...]) -> None:
    lines, heavy = _heavy_imports_of(STATUS, _runs_root(study))
    assert "0 of 11 done" in lines[0]
    assert lines[-1].endswith("is up to date")
    assert heavy == []


def test_stopping_imports_nothing_heavy(study: tuple[str, ...]) -> None:
    lines, heavy = _heavy_imports_of(CANCEL, _runs_root(study))
    assert lines == [f"nothing runs in {_runs_root(study).removeprefix('runs_root=')}"]
    assert heavy == []


@pytest.mark.slow
def test_they_take_a_moment(study: tuple[str, ...]) -> None:
    commands: dict[str, Callable[[], str]] = {
        "yardstick": lambda: _run(YARDSTICK),
        "dry run": lambda: _run(SWEEP, *study, "dry_run=true"),
        "status": lambda: _run(STATUS, _runs_root(study)),
        "cancel": lambda: _run(CANCEL, _runs_root(study)),
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(4):  # in turn, and the best of each: other processes take their share of the machine
        for name, command in commands.items():
            best[name] = min(best[name], _seconds(command))
    ratios = {name: seconds / best["yardstick"] for name, seconds in best.items()}
    print(best, ratios)
    assert ratios["dry run"] < 6  # 2.6 when this was written
    assert ratios["status"] < 2.5  # 0.7
    assert ratios["cancel"] < 2.5  # 0.5


def test_a_thousand_experiments_are_planned_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[str] = []
    compose = overrides_module.compose

    def counting(name: str, *arguments: Any, **options: Any) -> Any:
        composed.append(name)
        return compose(name, *arguments, **options)

    def prepare(data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "fingerprint": "f" * 64}

    def plan(num_seeds: int) -> Plan:
        return make_plan("relaxation", [f"seeds={[*range(num_seeds)]}"], prepare=prepare)

    monkeypatch.setattr(overrides_module, "compose", counting)
    assert (len(plan(1).graph), len(plan(100).graph)) == (11, 1100)
    assert composed == 2 * ["launch", "pretrain", "downstream"]
    few, many = (min(_seconds(lambda num=num: plan(num).graph.heights()) for _ in range(3)) for num in (1, 100))
    assert many < 12 * few  # 3 when this was written; 100 if each were composed


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
