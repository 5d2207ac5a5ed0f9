"""How an experiment stands: what its run directory says, and what Slurm says of its job if it was given to Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json
from launch.slurm.assignments import Assignment, queue_of, read_assignment
from launch.slurm.commands import NoSlurmError, Queue, QueuedTask, read_ended
from launch.study.graph import Graph
from launch.study.record import StudyRunningError, assignment_path, last_lines, record_path, table_assignment_path

SUBMISSION_SECONDS = 120.0
"""So long after its claim an experiment without a job is taken to be just being submitted (chosen by us)."""

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
"""Slurm's words for why a job waits, in ours; any other word is shown as it is."""

_NO_WORD = (
    "it ended before its first word: can compute nodes read the code and write the run directories (cluster.scratch)?"
)

_ENDED_FOR_GOOD = {"OUT_OF_MEMORY": "out of memory", "FAILED": "", "DEADLINE": "deadline"}

_BLOCKED = {"failed": "parent failed", "parent failed": "parent failed"} | dict.fromkeys(
    ("cancelled", "parent cancelled"), "parent cancelled"
)


@dataclass(frozen=True)
class Standing:
    """How an experiment stands.

    Attributes:
        state: ``"done"``, ``"running"``, ``"queued"``, ``"waiting"`` (for a parent), ``"interrupted"``, ``"failed"``,
            ``"cancelled"``, ``"parent failed"``, ``"parent cancelled"`` or ``"not started"``.
        progress: what the job last said of itself; empty before its first word.
        restarts: how often it was started again.
        why: why it waits or has ended, when Slurm knows; else empty.
        job: the Slurm job; empty without one.
        nodes: where it runs; empty when it does not.
        preemptions: how often its present job had to make room for another one.
        left: how that job's last start ended, as launch/job/requeue.py has noted it.
    """

    state: str
    progress: Mapping[str, Any]
    restarts: int = 0
    why: str = ""
    job: str = ""
    nodes: str = ""
    preemptions: int = 0
    left: str = ""


@dataclass(frozen=True)
class SlurmView:
    """What Slurm says of the jobs that experiments were given to.

    Attributes:
        queue: what is queued or runs; None where nothing was asked.
        claims: by run directory.
        ended: how jobs have ended that are not in the queue, as far as there is accounting.
    """

    queue: Queue | None = None
    claims: Mapping[Path, Assignment] = field(default_factory=dict)
    ended: Mapping[tuple[str, int | None], str] = field(default_factory=dict)

    def task(self, claim: Assignment) -> QueuedTask | None:
        """Return the job of a claim, None when it is not in the queue."""
        return None if self.queue is None else claim.task_in(self.queue)


_NOT_ASKED = SlurmView()


def read_slurm(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> SlurmView:
    """Ask Slurm about everything in these records that was given to it: one squeue call, and one sacct call if need be.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.

    Raises:
        SlurmError: when there are such jobs and Slurm does not answer.
    """
    claims: dict[Path, Assignment] = {}
    for path in _paths(runs_root, records):
        claim = None if (path / "result.json").is_file() else read_assignment(assignment_path(path), runs_root)
        if claim is not None:
            claims[path] = claim
    tables = [table_claim(runs_root, record) for record in records if "study" in record]
    if not claims and not any(tables):
        return SlurmView()
    queue = queue_of(claims.values())
    view = SlurmView(queue, claims)
    gone = [claim for claim in claims.values() if view.task(claim) is None]
    ended = read_ended(claim.call.job_id for claim in gone if claim.call.job_id)
    return SlurmView(queue, claims, ended)


def table_claim(runs_root: Path, record: Mapping[str, Any]) -> Assignment | None:
    """Return the claim of a study's table."""
    path = record_path(runs_root, f"{record['study']}.{record['fingerprint']}")
    return read_assignment(table_assignment_path(path), runs_root)


def _paths(runs_root: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    for record in records:
        for member in record["members"]:
            yield runs_root / member["path"]


def standing_of(path: Path, parents: Sequence[Path] = (), *, slurm: SlurmView = _NOT_ASKED) -> Standing:
    """Tell how an experiment stands.

    Args:
        path: its run directory, which may not exist yet.
        parents: those of the experiments that it needs.
        slurm: what Slurm says; by default nothing was asked.
    """
    progress = RunDirectory(path).progress or {}
    launches = read_json(path / "launches.json") or []
    restarts = max(0, len(launches) - 1)
    if (path / "result.json").is_file():
        return Standing("done", progress, restarts)
    claim = slurm.claims.get(path) if slurm.queue is not None else None
    if claim is not None:
        standing = _on_slurm(claim, slurm, path, parents, progress, restarts)
        left = [launch.get("left") for launch in launches if launch.get("slurm_job") == standing.job]
        return replace(standing, preemptions=left.count("preempted"), left=str((left or [""])[-1] or ""))
    if RunDirectory(path).is_running:
        return Standing("running", progress, restarts)
    return _here(path, parents, progress, restarts, slurm)


def _here(
    path: Path, parents: Sequence[Path], progress: Mapping[str, Any], restarts: int, slurm: SlurmView
) -> Standing:
    """Tell from the run directory alone."""
    said = progress.get("state", "queued")
    if said not in ("queued", "blocked"):  # whoever says it runs, and does not, was killed
        return Standing(said if said in ("failed", "cancelled") else "interrupted", progress, restarts)
    blocked = _blocked_by(parents, slurm)
    if blocked:
        return Standing(blocked, progress)
    waits = any(standing_of(parent, slurm=slurm).state != "done" for parent in parents)
    return Standing("waiting" if waits else "not started", progress)


def _blocked_by(parents: Sequence[Path], slurm: SlurmView) -> str:
    """Return ``parent failed`` or ``parent cancelled`` where a parent has ended without a result, else nothing."""
    states = {_BLOCKED.get(standing_of(parent, slurm=slurm).state, "") for parent in parents}
    return max(states, default="")  # a failure before a cancellation


def _on_slurm(
    claim: Assignment,
    slurm: SlurmView,
    path: Path,
    parents: Sequence[Path],
    progress: Mapping[str, Any],
    restarts: int,
) -> Standing:
    task, job_id = slurm.task(claim), claim.call.job_id
    name = "" if job_id is None else job_id if claim.index is None else f"{job_id}_{claim.index}"
    if task is not None and task.is_running:
        why = "is just ending" if task.state == "COMPLETING" else ""
        return Standing("running", progress, restarts, why, name, task.nodes)
    if task is not None:
        waits = task.reason == "Dependency"
        blocked = _blocked_by(parents, slurm) if waits else ""
        if blocked:  # Slurm ends it when the whole array that it waits for has ended
            return Standing(blocked, progress, restarts, "", name)
        why = "" if waits else REASONS.get(task.reason, task.reason)
        if not waits and task.starts not in ("N/A", ""):
            why += f"; expected to start {task.starts.replace('T', ' ')}"
        return Standing("waiting" if waits else "queued", progress, restarts, why, name)
    if job_id is None and time.time() - claim.call.about.get("created", 0) < SUBMISSION_SECONDS:
        return Standing("queued", progress, restarts, "is being submitted")
    if RunDirectory(path).is_running:
        return Standing("running", progress, restarts, "", name)
    state, why = _how_it_ended(claim, slurm, path, parents, progress)
    return Standing(state, progress, restarts, why, name)


def _how_it_ended(
    claim: Assignment, slurm: SlurmView, path: Path, parents: Sequence[Path], progress: Mapping[str, Any]
) -> tuple[str, str]:
    """Return state and reason of an experiment whose job is gone from the queue without a result."""
    if claim.cancelled:
        return "cancelled", ""
    if progress.get("state") == "failed":
        return "failed", str(progress.get("error") or "")
    was_started = bool(read_json(path / "launches.json"))
    blocked = _blocked_by(parents, slurm)
    job_id = claim.call.job_id
    word = "" if job_id is None else slurm.ended.get((job_id, claim.index), "").split(" ")[0]
    if blocked and word in ("", "CANCELLED"):
        return blocked, ""
    if word == "CANCELLED":
        return "cancelled", "by scancel"
    for_good = word in _ENDED_FOR_GOOD and not (word == "FAILED" and progress.get("state") == "interrupted")
    if job_id is not None and for_good:
        lines = last_lines(claim.call.log_path(job_id, claim.index), num_lines=1)
        return "failed", _ENDED_FOR_GOOD[word] or (
            lines[0] if lines else "its log says why" if was_started else _NO_WORD
        )
    if not word and (progress.get("signal") == "SIGTERM" or not was_started):
        return "cancelled", "its job is not in the queue any more"
    return "interrupted", f"Slurm says {word}" if word else "its job is not in the queue any more"


_WORDS = {
    "failed": "failed",
    "cancelled": "cancelled",
    "parent failed": "blocked",
    "parent cancelled": "blocked",
    "interrupted": "interrupted",
}
"""What progress.json says of an experiment whose job has ended like this."""


def record_final_states(runs_root: Path, records: Sequence[Mapping[str, Any]], slurm: SlurmView) -> None:
    """Write into run directories what has become of jobs that could not say it themselves.

    Args:
        runs_root: folder of the run directories.
        records: records of studies.
        slurm: what Slurm says.
    """
    if slurm.queue is None:
        return
    for record in records:
        paths = {member["identity"]: runs_root / member["path"] for member in record["members"]}
        for member in record["members"]:
            path = paths[member["identity"]]
            if path not in slurm.claims:
                continue
            parents = [paths[parent] for parent in member["parents"] if parent in paths]
            now = standing_of(path, parents, slurm=slurm)
            word = _WORDS.get(now.state)
            if word is not None and now.progress.get("state") != word:
                RunDirectory(path).write_progress(**{**now.progress, "state": word, "error": now.why})


def states_of(graph: Graph) -> dict[str, str]:
    """Return the state of each experiment by its identity, as far as the files tell; Slurm is not asked."""
    return {
        experiment.identity: standing_of(experiment.path, [parent.path for parent in experiment.parents]).state
        for experiment in graph
    }


def require_none_on_slurm(graph: Graph, runs_root: Path) -> None:
    """Refuse to run here what a job in the queue will run."""
    claimed = [item for item in graph if assignment_path(item.path).exists() and standing_of(item.path).state != "done"]
    if not claimed:
        return
    found = {item.label: read_assignment(assignment_path(item.path), runs_root) for item in claimed}
    claims = {label: claim for label, claim in found.items() if claim is not None}
    try:
        queue = queue_of(claims.values())
    except NoSlurmError:  # a copy of somebody's runs, on another machine
        return
    for label, claim in claims.items():
        task = claim.task_in(queue)
        if task is not None:
            raise StudyRunningError(
                f"{label} has been given to Slurm (job {task.job_id}_{claim.index}): uv run launch/status.py shows how"
                " it stands, uv run launch/cancel.py takes it back"
            )
