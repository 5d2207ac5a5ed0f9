"""The status of experiments: the state in the run directory, overlaid with what Slurm reports of their jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState, read_state, state_on_disk
from crisscross.utils.files import read_json
from launch.slurm.assignments import Assignment, queue_of, read_assignment
from launch.slurm.commands import NoSlurmError, Queue, QueuedTask, read_ended
from launch.study.graph import Graph
from launch.study.record import StudyRunningError, assignment_path, last_lines, record_path, table_assignment_path

SUBMISSION_SECONDS = 120.0  # ours: an assigned experiment without a job counts as being submitted for so long

REASONS = {
    "Priority": "others come first",
    "Resources": "no node is free",
    "BeginTime": "Slurm waits a moment before it starts a job again",
    "None": "Slurm has not looked at it yet",
    "JobArrayTaskLimit": "as many of its array run as may (cluster.array_parallelism)",
    "JobHeldUser": "held: scontrol release lets it go",
    "JobHeldAdmin": "held by an administrator",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
}
"""What Slurm's reasons for a pending job mean. Other reasons are shown as they are."""

_NO_OUTPUT = (
    "it ended before its first word: can compute nodes read the code and write the run directories (cluster.scratch)?"
)

_ENDED_FOR_GOOD = {"OUT_OF_MEMORY": "out of memory", "FAILED": "", "DEADLINE": "deadline"}


@dataclass(frozen=True)
class JobStatus:
    """The status of an experiment, with or without a Slurm job.

    Attributes:
        state: the state.
        progress: content of ``progress.json``; empty without one.
        restarts: number of restarts.
        why: why it is pending or has ended, if Slurm reports that; else empty.
        job: the Slurm job; empty without one.
        nodes: nodes of a running job; else empty.
        preemptions: how often the current job was preempted.
        left: how the last start of that job ended, as launch/job/requeue.py records it.
    """

    state: RunState
    progress: Mapping[str, Any]
    restarts: int = 0
    why: str = ""
    job: str = ""
    nodes: str = ""
    preemptions: int = 0
    left: str = ""


@dataclass(frozen=True)
class SlurmView:
    """What Slurm reports of the jobs that experiments are assigned to.

    Attributes:
        queue: the queue; None if Slurm was not queried.
        assignments: by run directory.
        ended: final states of jobs that left the queue, as far as accounting has them.
    """

    queue: Queue | None = None
    assignments: Mapping[Path, Assignment] = field(default_factory=dict)
    ended: Mapping[tuple[str, int | None], str] = field(default_factory=dict)

    def task(self, assignment: Assignment) -> QueuedTask | None:
        """Return the job of an assignment.

        Returns:
            The job, or None if it is not in the queue.
        """
        return None if self.queue is None else assignment.task_in(self.queue)


_NOT_QUERIED = SlurmView()


def read_slurm(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> SlurmView:
    """Query Slurm for the jobs of all experiments of some studies.

    It takes one squeue call, and one sacct call if jobs have left the queue.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.

    Raises:
        SlurmError: if there are such jobs and Slurm does not answer.
    """
    assignments: dict[Path, Assignment] = {}
    for path in _paths(runs_root, records):
        is_done = (path / "result.json").is_file()
        assignment = None if is_done else read_assignment(assignment_path(path), runs_root)
        if assignment is not None:
            assignments[path] = assignment
    tables = [table_assignment(runs_root, record) for record in records if "study" in record]
    if not assignments and not any(tables):
        return SlurmView()
    queue = queue_of(assignments.values())
    view = SlurmView(queue, assignments)
    not_queued = [assignment for assignment in assignments.values() if view.task(assignment) is None]
    ended = read_ended(assignment.call.job_id for assignment in not_queued if assignment.call.job_id)
    return SlurmView(queue, assignments, ended)


def table_assignment(runs_root: Path, record: Mapping[str, Any]) -> Assignment | None:
    """Return the assignment of a study's table."""
    path = record_path(runs_root, f"{record['study']}.{record['fingerprint']}")
    return read_assignment(table_assignment_path(path), runs_root)


def _paths(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    for record in records:
        for member in record["members"]:
            yield runs_root / member["path"]


def read_status(path: Path, parents: Sequence[Path] = (), *, slurm: SlurmView = _NOT_QUERIED) -> JobStatus:
    """Return the status of an experiment.

    Args:
        path: its run directory, which need not exist yet.
        parents: run directories of the experiments that it needs.
        slurm: what Slurm reports; by default nothing.
    """
    run = RunDirectory(path)
    launches = read_json(path / "launches.json") or []
    status = JobStatus(read_state(run, stale_s=-math.inf).state, run.progress or {}, max(0, len(launches) - 1))
    if status.state is RunState.DONE:
        return status
    assignment = slurm.assignments.get(path) if slurm.queue is not None else None
    if assignment is not None:
        status = _on_slurm(assignment, slurm, run, parents, status)
        left = [launch.get("left") for launch in launches if launch.get("slurm_job") == status.job]
        return replace(status, preemptions=left.count("preempted"), left=str((left or [""])[-1] or ""))
    if run.is_running:
        return replace(status, state=RunState.RUNNING)
    return _without_job(parents, status, slurm)


def _without_job(parents: Sequence[Path], status: JobStatus, slurm: SlurmView) -> JobStatus:
    """Return the status of an experiment without process and job."""
    if status.state not in (RunState.QUEUED, RunState.PARENT_FAILED):
        return status
    blocked = _blocked_by(parents, slurm)
    waits = any(read_status(parent, slurm=slurm).state is not RunState.DONE for parent in parents)
    state = blocked or (RunState.WAITING if waits else RunState.NOT_STARTED)
    return replace(status, state=state, restarts=0)


def _blocked_by(parents: Sequence[Path], slurm: SlurmView) -> RunState | None:
    """Return the state of an experiment after its parents' end.

    Returns:
        ``PARENT_FAILED`` or ``PARENT_CANCELLED`` if a parent ended without a result, else None.
    """
    states = {read_status(parent, slurm=slurm).state.of_child for parent in parents}
    return next((state for state in (RunState.PARENT_FAILED, RunState.PARENT_CANCELLED) if state in states), None)


def _on_slurm(
    assignment: Assignment, slurm: SlurmView, run: RunDirectory, parents: Sequence[Path], status: JobStatus
) -> JobStatus:
    """Return an experiment's status, updated by Slurm's report of its job."""
    task, job_id = slurm.task(assignment), assignment.call.job_id
    name = "" if job_id is None else job_id if assignment.index is None else f"{job_id}_{assignment.index}"
    status = replace(status, job=name)
    if task is not None and task.is_running:
        why = "is just ending" if task.state == "COMPLETING" else ""
        return replace(status, state=RunState.RUNNING, why=why, nodes=task.nodes)
    if task is not None:
        waits = task.reason == "Dependency"
        blocked = _blocked_by(parents, slurm) if waits else None
        if blocked:  # Slurm ends it when the whole array that it waits for has ended
            return replace(status, state=blocked)
        why = "" if waits else REASONS.get(task.reason, task.reason)
        if not waits and task.starts not in ("N/A", ""):
            why += f"; expected to start {task.starts.replace('T', ' ')}"
        return replace(status, state=RunState.WAITING if waits else RunState.QUEUED, why=why)
    if job_id is None and time.time() - assignment.call.about.get("created", 0) < SUBMISSION_SECONDS:
        return replace(status, state=RunState.QUEUED, why="is being submitted", job="")
    if run.is_running:
        return replace(status, state=RunState.RUNNING)
    state, why = _how_it_ended(assignment, slurm, run, parents, status.progress)
    return replace(status, state=state, why=why)


def _how_it_ended(
    assignment: Assignment,
    slurm: SlurmView,
    run: RunDirectory,
    parents: Sequence[Path],
    progress: Mapping[str, Any],
) -> tuple[RunState, str]:
    """Return state and reason of an experiment without a result.

    The experiment's job has left the queue.
    """
    written = state_on_disk(progress.get("state", RunState.QUEUED))
    if assignment.cancelled:
        return RunState.CANCELLED, ""
    if written is RunState.FAILED:
        return RunState.FAILED, str(progress.get("error") or "")
    was_started = bool(read_json(run.path / "launches.json"))
    blocked = _blocked_by(parents, slurm)
    job_id = assignment.call.job_id
    ending = "" if job_id is None else slurm.ended.get((job_id, assignment.index), "").split(" ")[0]
    if blocked and ending in ("", "CANCELLED"):
        return blocked, ""
    if ending == "CANCELLED":
        return RunState.CANCELLED, "by scancel"
    is_final = ending in _ENDED_FOR_GOOD and not (ending == "FAILED" and written is RunState.INTERRUPTED)
    if job_id is not None and is_final:
        lines = last_lines(assignment.call.log_path(job_id, assignment.index), num_lines=1)
        return RunState.FAILED, _ENDED_FOR_GOOD[ending] or (
            lines[0] if lines else "its log says why" if was_started else _NO_OUTPUT
        )
    if not ending and (progress.get("signal") == "SIGTERM" or not was_started):
        return RunState.CANCELLED, "its job is not in the queue any more"
    return RunState.INTERRUPTED, f"Slurm says {ending}" if ending else "its job is not in the queue any more"


def record_final_states(runs_root: Path, records: Sequence[Mapping[str, Any]], slurm: SlurmView) -> None:
    """Write the final states of jobs that ended without writing them.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.
        slurm: what Slurm reports.
    """
    if slurm.queue is None:
        return
    for record in records:
        paths = {member["identity"]: runs_root / member["path"] for member in record["members"]}
        for member in record["members"]:
            path = paths[member["identity"]]
            if path not in slurm.assignments:
                continue
            parents = [paths[parent] for parent in member["parents"] if parent in paths]
            status = read_status(path, parents, slurm=slurm)
            word = status.state.in_progress_json
            if status.state.is_over and status.state is not RunState.DONE and status.progress.get("state") != word:
                RunDirectory(path).write_progress(**{**status.progress, "state": word, "error": status.why})


def states_of(graph: Graph) -> dict[str, RunState]:
    """Return the state of each experiment by its identity.

    It does not query Slurm.
    """
    return {
        experiment.identity: read_status(experiment.path, [parent.path for parent in experiment.parents]).state
        for experiment in graph
    }


def require_none_on_slurm(graph: Graph, runs_root: Path) -> None:
    """Check that no experiment of a graph is in Slurm's queue.

    Raises:
        StudyRunningError: if one is.
    """
    found = {
        item.label: read_assignment(assignment_path(item.path), runs_root)
        for item in graph
        if assignment_path(item.path).exists() and RunDirectory(item.path).result is None
    }
    assignments = {label: assignment for label, assignment in found.items() if assignment is not None}
    if not assignments:
        return
    try:
        queue = queue_of(assignments.values())
    except NoSlurmError:  # a copy of somebody's runs, on another machine
        return
    for label, assignment in assignments.items():
        task = assignment.task_in(queue)
        if task is not None:
            raise StudyRunningError(
                f"{label} has been given to Slurm (job {task.job_id}_{assignment.index}): uv run launch/status.py shows"
                " its state, uv run launch/cancel.py cancels it"
            )
