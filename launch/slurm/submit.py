"""Submit a study to Slurm as one graph of jobs.

A launch reconciles. Under one lock it reads the queue once, completes what an interrupted launch left, keeps
experiments that are done, queued or running, and submits the rest in as few sbatch calls as there are different
resources and dependencies. Each experiment is assigned to a job on disk before the job exists
(launch/slurm/assignments.py), so that neither a second launch nor a crash submits it twice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import write_text
from launch.slurm.arrays import Array, ArrayTask, Planner
from launch.slurm.assignments import (
    Assignment,
    SbatchCall,
    queue_of,
    read_assignment,
    release_assignment,
    submission_lock,
    write_assignment,
)
from launch.slurm.commands import NoSlurmError, Queue, SlurmError, SlurmSilentError, check, site_facts, slurm, submit
from launch.study.cluster import ClusterSettings, resource_kind
from launch.study.graph import Experiment, Graph
from launch.study.record import assignment_path, table_assignment_path

ENDING_SECONDS = 60.0  # ours: a launch waits this long for jobs that are ending; twice Slurm's usual KillWait


@dataclass
class Submission:
    """The outcome of a launch.

    Attributes:
        kept: experiments that were queued or running already, by identity.
        elsewhere: experiments that a process outside Slurm runs, and those that depend on them.
        arrays: the submitted arrays, in order.
        table_job: number of the table's job; None if it was not submitted.
        num_calls: number of sbatch calls.
        seconds: time from the first squeue to the last sbatch, in seconds.
        error: Slurm's reason for the first refusal; empty if it refused nothing.
        not_submitted: experiments that were not submitted after a refusal.
    """

    kept: dict[str, ArrayTask] = field(default_factory=dict)
    elsewhere: list[Experiment] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    table_job: str | None = None
    num_calls: int = 0
    seconds: float = 0.0
    error: str = ""
    not_submitted: list[Experiment] = field(default_factory=list)

    @property
    def num_submitted(self) -> int:
        """Number of experiments submitted."""
        return sum(len(array.tasks) for array in self.arrays)


@dataclass
class Submitter:
    """Submits the experiments of one study.

    Attributes:
        study: ``<study>.<fingerprint>``.
        cluster: the cluster.
        runs_root: folder of the run directories.
        code: environment variables with which jobs import the snapshot.
        print_line: called with each line for the user.
    """

    study: str
    cluster: ClusterSettings
    runs_root: Path
    code: Mapping[str, str]
    print_line: Callable[[str], None] = lambda text: None

    def submit(self, graph: Graph, runs: Mapping[str, RunDirectory], *, record: Path) -> Submission:
        """Submit experiments that are not done, queued or running.

        The table's job follows them.

        Args:
            graph: the experiments.
            runs: their run directories, by identity.
            record: the study's record, an argument of the table's job.

        Returns:
            The outcome, with Slurm's reason if it refused a job.

        Raises:
            SlurmError: if there is no Slurm, or it does not answer.
        """
        began = time.monotonic()
        done = Submission()
        with submission_lock(self.runs_root, print_line=self.print_line):
            assignments = [
                assignment
                for run in runs.values()
                if (assignment := read_assignment(assignment_path(run.path), self.runs_root))
            ]
            queue = self._quiet_queue(assignments)
            missing = self._reconcile(graph, runs, queue, done)
            planner = Planner(resource_kind, self._max_array_size(), done.kept)
            arrays = planner.plan(missing)
            for position, array in enumerate(arrays):
                try:
                    self._submit_array(array, runs)
                except (SlurmError, OSError) as error:
                    done.error = str(error)
                    done.not_submitted = [item for other in arrays[position:] for item in other.tasks.values()]
                    break
                done.num_calls += 1
                done.arrays.append(array)
            if not done.error:
                self._submit_table(done, record, queue)
        done.seconds = time.monotonic() - began
        return done

    def _quiet_queue(self, assignments: Sequence[Assignment]) -> Queue:
        """Read the queue until none of these jobs is ending.

        An ending job may still write a result.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        is_printed = False
        while True:
            queue = queue_of(assignments)
            tasks = [assignment.task_in(queue) for assignment in assignments]
            ending = [task for task in tasks if task is not None and task.state == "COMPLETING"]
            if not ending or time.monotonic() > deadline:
                return queue
            if not is_printed:
                self.print_line(f"{len(ending)} job(s) are just ending: waiting for them")
                is_printed = True
            time.sleep(1)

    def check_all(self, kinds: Iterable[str]) -> None:
        """Test one job of each kind with Slurm.

        A refusal then comes before the first submission, not in the middle of a graph.

        Raises:
            SlurmError: if there is no Slurm, or it refuses a kind.
        """
        needed = dict.fromkeys(kinds)
        asked = list(dict.fromkeys([*needed, "cpu"] if needed else []))
        with ThreadPoolExecutor(max(1, len(asked))) as pool:  # each call waits for Slurm
            answers = [pool.submit(self.check, kind) for kind in asked]
        for kind, answer in zip(asked, answers, strict=True):
            try:
                answer.result()
            except NoSlurmError:
                raise
            except SlurmError as error:
                raise SlurmError(f"Slurm refuses {kind} jobs: {error}; nothing was submitted") from None

    def check(self, kind: str) -> str:
        """Test a job of a kind and return Slurm's answer.

        Raises:
            SlurmError: if there is no Slurm, or it refuses the job.
        """
        with tempfile.TemporaryDirectory(dir=self.runs_root) as folder:
            script = Path(folder) / "script.sh"
            script.write_text(self.script_of(Array(kind, {}), Path(folder)))
            return check(script)

    def _max_array_size(self) -> int:
        return int(site_facts().get("MaxArraySize", "1001"))

    def _reconcile(
        self, graph: Graph, runs: Mapping[str, RunDirectory], queue: Queue, found: Submission
    ) -> list[Experiment]:
        """Return the experiments to submit, in topological order.

        Those that are queued or run elsewhere are entered in ``found``.
        """
        missing: dict[str, Experiment] = {}
        elsewhere: dict[str, Experiment] = {}
        arrays: dict[str, Array] = {}  # one object for each job in the queue
        orphans: list[str] = []
        for experiment in graph:
            run = runs[experiment.identity]
            if run.result is not None:
                continue
            assignment = read_assignment(assignment_path(run.path), self.runs_root)
            task = assignment.task_in(queue) if assignment else None
            if assignment is None or task is None:
                waits = any(parent.identity in elsewhere for parent in experiment.parents)
                (elsewhere if waits or run.is_running else missing)[experiment.identity] = experiment
            elif any(parent.identity in missing for parent in experiment.parents):
                orphans.append(f"{task.job_id}_{assignment.index}")  # it waits for a job that has left the queue
                missing[experiment.identity] = experiment
            else:
                assert assignment.index is not None  # only a table's job is in no array
                kind = assignment.call.about.get("kind", "")
                array = arrays.setdefault(task.job_id, Array(kind, {}, job_id=task.job_id))
                found.kept[experiment.identity] = ArrayTask(array, assignment.index)
        if orphans:
            slurm("scancel", *orphans)
        found.elsewhere = list(elsewhere.values())
        return list(missing.values())

    def _submit_array(self, array: Array, runs: Mapping[str, RunDirectory]) -> None:
        """Assign the experiments of an array and submit it.

        The order is assign, submit, record the number, so that the next launch can complete it after a crash.
        """
        paths = {index: runs[item.identity].path for index, item in array.tasks.items()}
        call = SbatchCall.create(self.runs_root, kind=array.kind, runs=paths, dependency=array.dependency)
        for index, path in paths.items():
            write_assignment(assignment_path(path), Assignment(call, index))
            runs[array.tasks[index].identity].record_queued()
        write_text(call.script, self.script_of(array, call.folder))
        try:
            array.job_id = _submit(call)
        except SlurmSilentError:
            raise  # the job may exist: the assignments stay, and the next launch finds it by its script or resubmits
        except (SlurmError, OSError):
            for path in paths.values():
                release_assignment(assignment_path(path), call)
            raise

    def script_of(self, array: Array, folder: Path) -> str:
        """Return the script of an array; its dependencies must have job numbers."""
        return self._script(
            array.kind,
            folder,
            command=["-m", "launch.job", "--batch", str(folder)],
            resources=array.kind,
            array=array.indices or None,
            dependency=array.dependency,
            afterwards=["-m", "launch.job.requeue", str(folder)],
        )

    def table_script(self, record: Path, folder: Path, *, after: Sequence[str]) -> str:
        """Return the script of the table's job.

        It starts after all other jobs have ended, successful or not.
        """
        return self._script(
            "table",
            folder,
            command=["-m", "launch.slurm.report_job", str(record.resolve())],
            resources="cpu",
            dependency=":".join(["afterany", *after]) if after else None,
        )

    def _script(self, name: str, folder: Path, *, resources: str, **settings: Any) -> str:
        from launch.slurm.script import script_text  # here: it imports submitit, which status and cancel do not need

        return script_text(
            folder=folder,
            name=f"{self.study}-{name}",
            cluster=self.cluster,
            resources=self.cluster.resources_of(resources),
            code=self.code,
            working_directory=self.runs_root.resolve(),
            **settings,
        )

    def _submit_table(self, done: Submission, record: Path, queue: Queue) -> None:
        """Submit the table's job after all others.

        A queued one that waits for only a part of them is cancelled.
        """
        path = table_assignment_path(record)
        old = read_assignment(path, self.runs_root)
        waiting = old.task_in(queue) if old else None
        if not done.arrays and (waiting or not done.kept):
            done.table_job = waiting.job_id if waiting else None
            return
        if waiting:
            slurm("scancel", waiting.job_id)
        arrays = [*(task.array for task in done.kept.values()), *done.arrays]
        after = sorted({array.submitted_id for array in arrays})
        call = SbatchCall.create(self.runs_root, kind="table", runs={}, dependency=":".join(["afterany", *after]))
        write_text(call.script, self.table_script(record, call.folder, after=after))
        write_assignment(path, Assignment(call, None))
        try:
            done.table_job = _submit(call)
        except (SlurmError, OSError) as error:
            done.error = f"the table: {error}"
            return
        done.num_calls += 1


def _submit(call: SbatchCall) -> str:
    """Call sbatch and return the job's number.

    If the controller answers too late for sbatch, it may still have queued the job: then squeue decides.
    """
    try:
        job_id = submit(call.script)
    except SlurmSilentError:
        found = queue_of([]).job_of(str(call.script))
        if found is None:
            raise
        job_id = found
    call.record_job_id(job_id)
    return job_id
