from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from crisscross.run.run_dir import RunDirectory
from launch.local.jobs import LocalJob
from launch.slurm.job_status import read_status
from launch.study.graph import Graph
from tests.launch.support import evaluation, make_runner, pretraining, runs_of
from tests.requirements import missing


def _states(jobs: list[LocalJob]) -> dict[str, str]:
    return {job.experiment.label: job.state for job in jobs}


def test_children_run_after_their_parents(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, parent), evaluation(tmp_path, None)])
    runner, printed = make_runner(tmp_path, graph, {})
    jobs = runner.run()
    assert set(_states(jobs).values()) == {"done"}
    times = {job.experiment.label: job.run.result["time"] for job in jobs}
    assert times["m-mild-demo-s0-svm-demo"][0] > times["m-mild-demo-s0"][1]
    assert "m-mild-demo-s0: started" in printed.getvalue()
    assert "threads 1" in jobs[0].run.log_path.read_text()


def test_no_more_run_side_by_side_than_allowed(tmp_path: Path) -> None:
    graph = Graph([pretraining(tmp_path, seed=seed) for seed in range(4)])
    runner, _ = make_runner(tmp_path, graph, {f"m-mild-demo-s{seed}": {"seconds": 0.2} for seed in range(4)}, slots=2)
    spans = [job.run.result["time"] for job in runner.run()]
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 2


def test_a_failure_ends_its_dependents_and_nothing_else(tmp_path: Path) -> None:
    bad, good = pretraining(tmp_path, relaxation="none"), pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, bad), evaluation(tmp_path, good)])
    runner, printed = make_runner(tmp_path, graph, {bad.label: {"end": "fail"}})
    jobs = runner.run()
    assert _states(jobs) == {
        "m-none-demo-s0": "failed",
        "m-none-demo-s0-svm-demo": "parent failed",
        "m-mild-demo-s0": "done",
        "m-mild-demo-s0-svm-demo": "done",
    }
    lost = next(job for job in jobs if job.state == "parent failed")
    assert lost.run.progress["state"] == "blocked"
    assert not lost.run.log_path.exists()
    assert "m-none-demo-s0: failed: clip 7 is damaged: remove it" in printed.getvalue()
    assert "m-none-demo-s0-svm-demo: parent failed: m-none-demo-s0" in printed.getvalue()


def test_what_failed_is_tried_again_and_what_is_done_is_kept(tmp_path: Path) -> None:
    bad, good = pretraining(tmp_path, relaxation="none"), pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, bad), good])
    make_runner(tmp_path, graph, {bad.label: {"end": "fail"}})[0].run()
    before = runs_of(graph)[good.identity].result
    jobs = make_runner(tmp_path, graph, {})[0].run()
    assert set(_states(jobs).values()) == {"done"}
    assert [job.kept for job in jobs] == [False, False, True]
    assert runs_of(graph)[good.identity].result == before
    assert read_status(bad.path).restarts == 1
    assert read_status(good.path).restarts == 0


def test_a_killed_job_says_by_what(tmp_path: Path) -> None:
    runner, _ = make_runner(tmp_path, Graph([pretraining(tmp_path)]), {"m-mild-demo-s0": {"end": "kill"}})
    (job,) = runner.run()
    assert (job.state, job.reason) == ("failed", "killed by SIGKILL (out of memory?)")
    assert job.run.progress["state"] == "failed"
    assert job.run.progress["error"] == "killed by SIGKILL (out of memory?)"


def test_what_runs_elsewhere_is_waited_for_and_not_started_twice(tmp_path: Path) -> None:
    graph = Graph([pretraining(tmp_path)])
    first, _ = make_runner(tmp_path, graph, {"m-mild-demo-s0": {"seconds": 0.6}})
    second, printed = make_runner(tmp_path, graph, {"m-mild-demo-s0": {"seconds": 0.6}})
    run = next(iter(first.runs.values()))
    process = subprocess.Popen(first.command(run.path), env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not RunDirectory(run.path).is_running:
        time.sleep(0.01)
    (job,) = second.run()
    process.wait()
    assert job.state == "done"
    assert "attached to the process that runs it already" in printed.getvalue()
    assert read_status(run.path).restarts == 0


def test_an_attached_experiment_that_is_interrupted_is_resumed(tmp_path: Path) -> None:
    graph = Graph([pretraining(tmp_path)])
    runner, _ = make_runner(tmp_path, graph, {"m-mild-demo-s0": {"seconds": 1.0}})
    run = next(iter(runner.runs.values()))
    process = subprocess.Popen(runner.command(run.path), env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not RunDirectory(run.path).is_running:
        time.sleep(0.01)
    threading.Timer(0.2, process.terminate).start()
    (job,) = runner.run()
    assert job.state == "done"
    assert process.wait() == 75
    assert read_status(run.path).restarts == 1


def test_ctrl_c_lets_jobs_save_and_starts_nothing_more(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, parent), pretraining(tmp_path, seed=1)])
    runner, printed = make_runner(tmp_path, graph, {parent.label: {"seconds": 30}}, slots=1)
    _interrupt_once_running(parent.path)
    jobs = runner.run()
    assert runner.was_stopped
    assert _states(jobs) == {
        "m-mild-demo-s0": "interrupted",
        "m-mild-demo-s0-svm-demo": "parent interrupted",
        "m-mild-demo-s1": "waiting",
    }
    assert read_status(parent.path).state == "interrupted"
    assert "stopping: 1 experiment(s) write a checkpoint, up to 120 s (Ctrl-C again kills them)" in printed.getvalue()


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    one = pretraining(tmp_path)
    runner, _ = make_runner(tmp_path, Graph([one]), {one.label: {"seconds": 30, "end": "stubborn"}})
    _interrupt_once_running(one.path, again=(signal.SIGINT, 1.2))
    (job,) = runner.run()
    assert job.state == "interrupted"
    assert job.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 0.2), (signal.SIGTERM, 1.2)])
def test_a_request_that_arrives_twice_kills_nothing(tmp_path: Path, number: int, after_s: float) -> None:
    one = pretraining(tmp_path)
    runner, _ = make_runner(tmp_path, Graph([one]), {one.label: {"seconds": 3, "end": "stubborn"}})
    _interrupt_once_running(one.path, again=(number, after_s))
    (job,) = runner.run()
    assert job.state == "done"


def test_a_job_that_cannot_be_started_is_one_failure(tmp_path: Path) -> None:
    bad, good = pretraining(tmp_path), pretraining(tmp_path, seed=1)
    runner, _ = make_runner(tmp_path, Graph([bad, good]), {})
    runner.runs[bad.identity].log_path.mkdir()
    jobs = runner.run()
    assert [job.state for job in jobs] == ["failed", "done"]
    assert jobs[0].reason.startswith("could not be started: [Errno 21] Is a directory")


def test_jobs_that_do_not_leave_are_killed_in_the_end(tmp_path: Path) -> None:
    one = pretraining(tmp_path)
    runner, _ = make_runner(tmp_path, Graph([one]), {one.label: {"seconds": 30, "end": "stubborn"}}, cold=True)
    runner.stop_seconds = 0.3
    _interrupt_once_running(one.path)
    (job,) = runner.run()
    assert job.process.returncode == -signal.SIGKILL
    assert not RunDirectory(one.path).is_running


def test_a_job_interrupted_from_elsewhere_holds_its_dependents(tmp_path: Path) -> None:
    parent = pretraining(tmp_path)
    graph = Graph([evaluation(tmp_path, parent)])
    runner, _ = make_runner(tmp_path, graph, {parent.label: {"seconds": 30}})

    def interrupt() -> None:
        while not RunDirectory(parent.path).is_running:
            time.sleep(0.01)
        time.sleep(0.1)
        next(iter(runner.jobs.values())).process.terminate()

    threading.Thread(target=interrupt).start()
    assert list(_states(runner.run()).values()) == ["interrupted", "parent interrupted"]


def test_a_killed_launcher_takes_its_jobs_along(tmp_path: Path) -> None:
    if sys.platform != "linux":
        missing("PR_SET_PDEATHSIG is Linux's")
    one = pretraining(tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from launch.study.graph import Graph\n"
        "from tests.launch.support import make_runner, pretraining\n"
        "folder = Path(sys.argv[1]); one = pretraining(folder)\n"
        "make_runner(folder, Graph([one]), {one.label: {'seconds': 60}}, cold=True)[0].run()\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    while not (one.path / "progress.json").exists():
        time.sleep(0.02)
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    psutil.wait_procs([child], timeout=300)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert read_status(one.path).state == "interrupted"


def test_plain_lines_say_how_far_a_job_is(tmp_path: Path) -> None:
    one = pretraining(tmp_path)
    runner, printed = make_runner(tmp_path, Graph([one]), {one.label: {"seconds": 1.0}}, heartbeat_s=0.2)
    runner.run()
    assert "m-mild-demo-s0: training 3/9, 0:07 left, loss -0.250, 40.0 clips/s" in printed.getvalue()
    assert "0 of 1 done, 1 running" in printed.getvalue()
    assert "about 0:07 left" in printed.getvalue()


def _interrupt_once_running(path: Path, *, again: tuple[int, float] | None = None) -> None:
    def interrupt() -> None:
        while not RunDirectory(path).is_running or not (path / "progress.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        if again:
            time.sleep(again[1])
            os.kill(os.getpid(), again[0])

    threading.Thread(target=interrupt).start()
