"""What is said of experiments that were given to Slurm, from the queue, the accounting and the run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import write_json
from launch.slurm import commands as slurm_queue
from launch.slurm import job_status as standing
from launch.slurm.assignments import (
    Assignment,
    SbatchCall,
    read_assignment,
    release_assignment,
    slurm_folder,
    submission_lock,
    write_assignment,
)
from launch.slurm.commands import Queue, QueuedTask, read_ended, read_queue
from launch.slurm.job_status import JobStatus, SlurmView, read_slurm, read_status, record_final_states
from launch.study.graph import Graph
from launch.study.record import assignment_path, write_record
from tests.launch.support import evaluation, pretraining, runs_of


class World:
    """A pretraining and its evaluation, both given to Slurm as tasks 3 of jobs 12 and 13."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parent_experiment = pretraining(root)
        self.graph = Graph([evaluation(root, self.parent_experiment)])
        runs = runs_of(self.graph)
        self.parent, self.child = (runs[item.identity] for item in self.graph)
        slurm_folder(root).mkdir(parents=True)
        self.assignments = {}
        for run, job_id in ((self.parent, "12"), (self.child, "13")):
            call = SbatchCall.create(root, kind="pretrain", runs={3: run.path}, dependency=None)
            call.record_job_id(job_id)
            write_assignment(assignment_path(run.path), Assignment(call, 3))
            self.assignments[run.path] = read_assignment(assignment_path(run.path), root)

    def view(self, *tasks: QueuedTask, **ended: str) -> SlurmView:
        words = {(job.removeprefix("job"), 3): word for job, word in ended.items()}
        return SlurmView(Queue(tasks), {**self.assignments}, words)

    def of_parent(self, view: SlurmView) -> JobStatus:
        return read_status(self.parent.path, slurm=view)

    def of_child(self, view: SlurmView) -> JobStatus:
        return read_status(self.child.path, [self.parent.path], slurm=view)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _task(job_id: str, state: str, reason: str = "None", *, nodes: str = "", starts: str = "N/A") -> QueuedTask:
    return QueuedTask(job_id, 3, state, reason, nodes, starts, "/script.sh")


def test_running_and_what_waits_for_it(world: World) -> None:
    view = world.view(_task("12", "RUNNING", nodes="n2"), _task("13", "PENDING", "Dependency"))
    found = world.of_parent(view)
    assert (found.state, found.job, found.nodes) == ("running", "12_3", "n2")
    assert world.of_child(view).state == "waiting"


def test_queued_says_why_and_until_when(world: World) -> None:
    found = world.of_parent(world.view(_task("12", "PENDING", "Resources", starts="2026-11-26T07:00:00")))
    assert (found.state, found.why) == ("queued", "no node is free; expected to start 2026-11-26 07:00:00")
    assert world.of_parent(world.view(_task("12", "PENDING", "QOSMaxGRESPerUser"))).why == "QOSMaxGRESPerUser"


def test_preemptions_are_counted_within_the_present_job(world: World) -> None:
    starts = [("11_3", "preempted"), ("12_3", "preempted"), ("12_3", "SIGUSR2"), ("12_3", None)]
    write_json(world.parent.path / "launches.json", [{"slurm_job": job, "left": left} for job, left in starts])
    found = world.of_parent(world.view(_task("12", "RUNNING")))
    assert (found.preemptions, found.restarts) == (1, 3)


@pytest.mark.parametrize(
    ("word", "progress", "expected"),
    [
        ("CANCELLED by 1000", {"state": "interrupted", "signal": "SIGTERM"}, ("cancelled", "by scancel")),
        ("TIMEOUT", {"state": "running"}, ("interrupted", "Slurm says TIMEOUT")),
        ("NODE_FAIL", {"state": "running"}, ("interrupted", "Slurm says NODE_FAIL")),
        ("OUT_OF_MEMORY", {"state": "running"}, ("failed", "out of memory")),
        ("FAILED", {"state": "failed", "error": "clip 7 is damaged"}, ("failed", "clip 7 is damaged")),
        ("FAILED", {"state": "running"}, ("failed", "its log says why")),
        ("FAILED", {"state": "interrupted"}, ("interrupted", "Slurm says FAILED")),
        # without accounting
        ("", {"state": "interrupted", "signal": "SIGTERM"}, ("cancelled", "its job is not in the queue any more")),
        ("", {"state": "running"}, ("interrupted", "its job is not in the queue any more")),
        ("", {"state": "failed", "error": "no disk"}, ("failed", "no disk")),
    ],
)
def test_how_a_job_ended(world: World, word: str, progress: dict[str, Any], expected: tuple[str, str]) -> None:
    write_json(world.parent.path / "launches.json", [{"slurm_job": "12"}])
    world.parent.write_progress(**progress)
    found = world.of_parent(world.view(**({"job12": word} if word else {})))
    assert (found.state, found.why) == expected


@pytest.mark.parametrize(("parent_says", "expected"), [("failed", "parent failed"), ("cancelled", "parent cancelled")])
@pytest.mark.parametrize("accounting", [False, True])
def test_dependents_end_with_their_parent(world: World, parent_says: str, expected: str, accounting: bool) -> None:
    write_json(world.parent.path / "launches.json", [{"slurm_job": "12"}])
    world.parent.write_progress(state=parent_says)
    view = world.view(**({"job13": "CANCELLED"} if accounting else {}))
    if parent_says == "cancelled":
        write_assignment(
            assignment_path(world.parent.path), Assignment(world.assignments[world.parent.path].call, 3, cancelled=1.0)
        )
        view = SlurmView(
            view.queue,
            {**view.assignments, world.parent.path: read_assignment(assignment_path(world.parent.path), world.root)},
            view.ended,
        )
    assert world.of_child(view).state == expected


def test_a_claim_without_a_job_is_being_submitted_for_a_while(world: World) -> None:
    call = world.assignments[world.parent.path].call
    (call.folder / "job.json").unlink()
    assert world.of_parent(world.view()).why == "is being submitted"
    write_json(call.folder / "batch.json", {**call.about, "created": 0})
    assert world.of_parent(world.view()).state == "cancelled"


def test_a_job_is_recognised_by_its_script(world: World) -> None:
    call = world.assignments[world.parent.path].call
    (call.folder / "job.json").unlink()
    task = QueuedTask("99", 3, "RUNNING", "None", "n1", "N/A", str(call.script))
    assert world.of_parent(world.view(task)).job == "99_3"
    assert call.job_id == "99"


def test_settling_writes_what_jobs_could_not_say(world: World) -> None:
    write_json(world.parent.path / "launches.json", [{"slurm_job": "12"}])
    world.parent.write_progress(state="running", step=5, total=9)
    record = write_record(
        world.root, "relaxation.1a2b3c4d", experiments=list(world.graph), about={"study": "relaxation"}, overrides=[]
    )
    record_final_states(world.root, [record], world.view(job12="OUT_OF_MEMORY", job13="CANCELLED"))
    said = world.parent.progress
    assert (said["state"], said["error"], said["step"]) == ("failed", "out of memory", 5)
    assert world.child.progress["state"] == "blocked"
    world.child.write_progress(state="queued")
    record_final_states(world.root, [record], SlurmView())  # Slurm did not answer: nothing is concluded
    assert world.child.progress["state"] == "queued"


def test_slurm_is_asked_only_where_something_was_given_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "queue_of", lambda claims: pytest.fail("squeue was called"))
    assert read_slurm(tmp_path, [{"members": []}]).queue is None


def test_squeue_and_sacct_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "squeue": "12|3|RUNNING|None|n[1-2]|2026-11-25T19:00:00|/a b/script.sh\n"
        "13|N/A|PENDING|Dependency||N/A|/c/script.sh\n"
        "14|0|PENDING|DependencyNeverSatisfied||N/A|/d/script.sh\n",
        "sacct": "12_3|CANCELLED by 0\n12_[4-9]|PENDING\n13|COMPLETED\n",
    }
    calls = []
    monkeypatch.setattr(slurm_queue, "slurm", lambda *command: calls.append(command) or answers[command[0]])
    queue = read_queue()
    assert queue.find("12", 3).nodes == "n[1-2]"
    assert queue.find("13", None).reason == "Dependency"
    assert queue.find("14", 0) is None  # it will never start
    assert queue.job_of("/a b/script.sh") == "12"
    assert read_ended(["13", "12", "12"]) == {("12", 3): "CANCELLED by 0", ("13", None): "COMPLETED"}
    assert calls[1][-1] == "12,13"
    assert read_ended([]) == {}
    read_queue({"ada", "bob"})
    assert calls[2][3:5] == ("--user", "ada,bob")


def test_only_its_own_sbatch_call_releases_an_assignment(world: World) -> None:
    path = assignment_path(world.parent.path)
    release_assignment(path, world.assignments[world.child.path].call)
    assert path.exists()
    release_assignment(path, world.assignments[world.parent.path].call)
    assert read_assignment(path, world.root) is None


def test_an_sbatch_call_finds_its_run_directories(world: World) -> None:
    call = world.assignments[world.parent.path].call
    assert call.run_path(3) == world.parent.path
    with pytest.raises(FileNotFoundError, match="no experiment with index 4"):
        call.run_path(4)
    assert RunDirectory.open(call.run_path(3)).identity == world.parent.identity


def test_submitting_is_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.slurm.assignments.LOCK_TIMEOUT_S", 0.1)
    said: list[str] = []
    with (
        submission_lock(tmp_path, print_line=said.append),
        pytest.raises(OSError, match="another launch has been submitting"),
        submission_lock(tmp_path, print_line=said.append),
    ):
        pass
    assert said == ["another launch is submitting: waiting for it"]
