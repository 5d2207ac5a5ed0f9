"""A study from launch to table, and what status and cancel say of it; the jobs are fake, the rest is real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crisscross.run.run_dir import RunDirectory
from launch import cancel, status, sync
from launch.main import launch
from launch.results import next_steps
from launch.slurm.job_status import SlurmView
from launch.study.plan import Plan, make_plan
from launch.study.record import StudyRunningError, read_records, study_holder, study_lock
from tests.launch.support import fake_command

REPOSITORY = Path(__file__).parents[2]


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "fingerprint": "f" * 64}


def _plan(*arguments: str) -> Plan:
    chosen = ["relaxation=[none,mild]", "tracking.delivery=off", "execution.device=cpu", *arguments]
    return make_plan("relaxation", chosen, prepare=_prepare)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "launch" / "sweep_relaxation.py"), "relaxation=[none,mild]"])


def _launch(tmp_path: Path, jobs: Mapping[str, Mapping[str, Any]], *arguments: str) -> int:
    return launch([_plan(*arguments)], console=Console(width=200), command=fake_command(tmp_path, jobs))


def test_launch_then_launch_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch(tmp_path, {}) == 0
    printed = capsys.readouterr().out
    assert "5 experiments (2 pretrainings, 3 evaluations), 0 done already" in printed
    assert "(Table 3): How much temporal relaxation is best?" in printed
    began = time.process_time()  # not by the clock: the machine may have other work
    assert _launch(tmp_path, {}) == 0
    assert time.process_time() - began < 5
    printed = capsys.readouterr().out
    assert "5 done already" in printed
    assert "started" not in printed
    (record,) = read_records(Path("runs"))
    assert record["study"] == "relaxation"
    assert len(record["members"]) == 5
    assert record["last_launch"]["host"] == socket.gethostname()
    assert all((Path("runs") / member["path"] / "result.json").is_file() for member in record["members"])


def test_members_of_earlier_launches_stay(tmp_path: Path) -> None:
    _launch(tmp_path, {})
    first = read_records(Path("runs"))[0]
    _launch(tmp_path, {}, "seeds=[1]")
    (record,) = read_records(Path("runs"))
    assert len(record["members"]) == 10
    assert record["launched"] == first["launched"]


def test_failures_are_listed_with_the_end_of_their_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _launch(tmp_path, {"crisscross-none-demo-s0": {"end": "fail"}}) == 1
    printed = capsys.readouterr().out
    assert "failed: crisscross-none-demo-s0: clip 7 is damaged: remove it" in printed
    assert "    a line of the log" in printed
    assert "    log: runs/pretrain/crisscross-none-demo-s0-" in printed
    assert (
        "1 experiment(s) failed; 1 experiment(s) that need them did not run. Try them again with:"
        " uv run launch/sweep_relaxation.py 'relaxation=[none,mild]'"
    ) in printed


def test_two_launches_at_once(tmp_path: Path) -> None:
    plan = _plan()
    with study_lock(plan.runs_root, plan.name):
        assert study_holder(plan.runs_root, plan.name)["pid"] == os.getpid()
        script = (
            "import sys; from pathlib import Path\n"
            "from launch.study.record import StudyRunningError, study_lock\n"
            "try:\n"
            "    with study_lock(Path(sys.argv[1]), sys.argv[2]): print('took it')\n"
            "except StudyRunningError as error: print(error)\n"
        )
        other = subprocess.run(
            [sys.executable, "-c", script, str(plan.runs_root.resolve()), plan.name],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout.startswith(
            f"{plan.name} is running already: process {os.getpid()} on {socket.gethostname()}, since "
        )
        assert other.stdout.endswith("; uv run launch/status.py shows it, uv run launch/cancel.py stops it\n")
    assert study_holder(plan.runs_root, plan.name) is None


def test_a_second_launch_of_the_same_study_is_refused(tmp_path: Path) -> None:
    plan = _plan()
    with study_lock(plan.runs_root, plan.name), pytest.raises(StudyRunningError, match="is running already: process"):
        launch([plan], console=Console(width=200), command=fake_command(tmp_path, {}))


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(iter(_plan().graph)).path
    _once_running(path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert _launch(tmp_path, {"crisscross-none-demo-s0": {"seconds": 30}}, "max_parallel=1") == 130
    printed = capsys.readouterr().out
    assert "stopped. What is done is kept; go on with: uv run launch/sweep_relaxation.py" in printed


def test_status_shows_every_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _launch(tmp_path, {"crisscross-none-demo-s0": {"end": "fail"}}, "study.floor=false")
    capsys.readouterr()
    assert status.main([]) == 0
    name = _plan().name
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}: 2 of 4 done, not running"
    found = {line.split("  ")[0]: " ".join(line.split()) for line in lines[2:6]}
    assert "failed clip 7 is damaged: remove it 0 runs/pretrain/" in found["crisscross-none-demo-s0"]
    assert "parent failed needs crisscross-none-demo-s0 0" in found["crisscross-none-demo-s0-svm-demo"]
    assert " done " in found["crisscross-mild-demo-s0"]
    assert lines[6] == "crisscross-none-demo-s0 failed; its log ends:"
    assert "    a line of the log" in lines[7:]
    assert lines[-1].startswith("go on with: uv run launch/sweep_relaxation.py")


def test_status_while_running_then_cancel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(iter(_plan().graph)).path
    seen: list[str] = []

    def look_and_stop() -> None:
        status.show(Path("runs"), [], console=Console(width=200))
        (target,) = cancel.targets(Path("runs"), ["relaxation"])
        seen.extend(cancel.cancel(Path("runs"), target, SlurmView()))

    _once_running(path, look_and_stop)
    code = _launch(tmp_path, {"crisscross-none-demo-s0": {"seconds": 30}}, "max_parallel=1")
    assert code == 130
    printed = capsys.readouterr().out
    assert f"running (process {os.getpid()} on {socket.gethostname()})" in printed
    assert "training 3/9, 0:07 left, loss -0.250, 40.0 clips/s" in printed
    assert seen[0].startswith(f"launcher of {_plan().name}: SIGTERM to process {os.getpid()}: it writes a checkpoint")
    assert seen[1].startswith("crisscross-none-demo-s0: SIGTERM to process ")
    status.main([])
    printed = capsys.readouterr().out
    assert "interrupted" in printed
    assert "at 3/9" in printed
    assert "waiting" in printed
    assert cancel.main([]) == 0
    assert capsys.readouterr().out == "nothing runs in runs\n"


def test_status_of_nothing_and_of_no_such_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([]) == 0
    assert capsys.readouterr().out == "no study in runs yet: start one with uv run launch/sweep_relaxation.py\n"
    assert status.main(["async"]) == 2
    assert capsys.readouterr().err == "error: async: no study of that name in runs: there is none yet\n"


def _once_running(path: Path, act: Any) -> None:
    def wait() -> None:
        while not RunDirectory(path).is_running or not (path / "progress.json").exists():
            time.sleep(0.01)
        act()

    threading.Thread(target=wait).start()


def test_next_steps_name_the_store_and_no_password() -> None:
    lines = next_steps(Path("my runs"), tracking={"uri": "https://ada:secret@host:5000", "experiment": "my tests"})
    assert "'runs_root=my runs'" in lines[2]
    assert lines[3:] == [
        "  uv run analysis/make_tables.py --uri 'https://***@host:5000' --experiment 'my tests'",
        "  open https://***@host:5000 in a browser",
    ]
    lines = next_steps(Path("runs"), tracking={"uri": "sqlite:///my runs.db", "experiment": "crisscross"})
    assert lines[4] == "  uv run mlflow ui --backend-store-uri 'sqlite:///my runs.db'"
    lines = next_steps(Path("runs"), tracking={"uri": "sqlite:///mlflow.db", "experiment": "crisscross"})
    assert lines[3:] == ["  uv run analysis/make_tables.py", "  uv run mlflow ui"]


def test_done_without_the_table_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://ada:secret@127.0.0.1:{nobody.getsockname()[1]}"
        assert _launch(tmp_path, {}, "tracking.delivery=deferred", f"tracking.uri={uri}") == 1
    captured = capsys.readouterr()
    assert "no table" in captured.err
    assert "secret" not in captured.out + captured.err
    (record,) = Path("runs/studies").glob("*.json")
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_the_launcher_records_everything_in_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from crisscross.tracking.query import search_runs
    from crisscross.tracking.sync import set_latest_tag

    place = {"uri": "sqlite:///mlflow.db", "experiment": "crisscross"}
    everything = "tags.`crisscross.identity` LIKE '%'"  # but the run that keeps the tables
    code = _launch(tmp_path, {"crisscross-none-demo-s0": {"end": "fail"}}, "tracking.delivery=direct")
    assert code == 1
    printed = capsys.readouterr().out
    assert "no table" not in printed
    assert "uv run launch/status.py" in printed
    found = {run["tags"]["mlflow.runName"]: run["status"] for run in search_runs(everything, **place)}
    assert found == {
        "crisscross-none-demo-s0": "FAILED",
        "crisscross-none-demo-s0-svm-demo": "FAILED",
        "crisscross-mild-demo-s0": "FINISHED",
        "crisscross-mild-demo-s0-svm-demo": "FINISHED",
        "untrained-s0-svm-demo": "FINISHED",
    }
    status.main([])
    assert "MLflow (sqlite:///mlflow.db) is up to date" in capsys.readouterr().out
    (Path("mlflow.db")).unlink()
    assert _launch(tmp_path, {}, "tracking.delivery=direct") == 0  # tries what failed again, and fills the store
    assert {run["status"] for run in search_runs(everything, **place)} == {"FINISHED"}
    (tables,) = search_runs("tags.kind = 'tables'", **place)
    assert tables["tags"]["crisscross.made_of"].startswith("tables relaxation.")
    assert len(search_runs(everything, **place)) == 5
    (Path("mlflow.db")).unlink()
    set_latest_tag("relaxation", "0" * 8, **place)  # another store in its place, which has other things
    assert _launch(tmp_path, {}, "tracking.delivery=direct") == 0
    assert len(search_runs(everything, **place)) == 5
    (Path("mlflow.db")).unlink()
    for path in Path("runs").glob("*/*/tracking.json"):
        path.unlink()
    sync.main([])
    assert "MLflow (sqlite:///mlflow.db): brought up to date for 5 run(s)" in capsys.readouterr().out
    assert len(search_runs(everything, **place)) == 5
