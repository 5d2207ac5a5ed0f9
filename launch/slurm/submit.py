"""Give a study to Slurm as one graph of jobs and return.

Launching is reconciling. Under one lock a launch asks squeue once, heals what an earlier launch left unfinished, keeps
what is done, queued or running, and hands over the rest in as few sbatch calls as there are different resources and
dependencies. Each experiment is claimed on disk before its job exists (launch/slurm/assignments.py), so that neither a
second launch nor a crash can double it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import write_text
from launch.slurm.arrays import Array, ArrayTask, Planner
from launch.slurm.assignments import (
    Assignment,
    SbatchCall,
    queue_of,
    read_claim,
    submitting,
    withdraw_claim,
    write_claim,
)
from launch.slurm.commands import NoSlurmError, Queue, SlurmError, SlurmSilentError, check, site_facts, slurm, submit
from launch.slurm.script import script_text
from launch.study.cluster import ClusterSettings, resource_kind
from launch.study.graph import Experiment, Graph
from launch.study.record import claim_path, table_claim_path

Say = Callable[[str], None]
ENDING_SECONDS = 60.0
"""How long a launch waits for jobs that are just ending (chosen by us: twice Slurm's usual KillWait)."""


@dataclass
class Submission:
    """What a launch found and did.

    Attributes:
        kept: experiments that are queued or running already, by identity.
        elsewhere: experiments that a process outside Slurm runs, and those that need them.
        arrays: what was submitted, in order.
        table_job: number of the table's job; None when it was not submitted.
        num_calls: sbatch calls.
        seconds: time from the first look at the queue to the last sbatch.
        error: why Slurm refused to go on; empty when it took everything.
        not_submitted: experiments that it did not take.
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
        code: variables that make jobs import the snapshot.
        say: told what is worth knowing.
    """

    study: str
    cluster: ClusterSettings
    runs_root: Path
    code: Mapping[str, str]
    say: Say = lambda text: None

    def submit(self, graph: Graph, runs: Mapping[str, RunDirectory], *, record: Path) -> Submission:
        """Submit what is neither done nor queued nor running, and the table behind it.

        Args:
            graph: the experiments.
            runs: their run directories, by identity.
            record: the study's record, which the table's job is handed.

        Raises:
            SlurmError: when Slurm is not there. What it refuses is told in the answer.
        """
        began = time.monotonic()
        done = Submission()
        with submitting(self.runs_root, say=self.say):
            claims = [claim for run in runs.values() if (claim := read_claim(claim_path(run.path), self.runs_root))]
            queue = self._quiet_queue(claims)
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

    def _quiet_queue(self, claims: Sequence[Assignment]) -> Queue:
        """Ask squeue until none of these jobs is just ending: it may leave a result or nothing, and soon be gone."""
        deadline = time.monotonic() + ENDING_SECONDS
        told = False
        while True:
            queue = queue_of(claims)
            tasks = [claim.task_in(queue) for claim in claims]
            ending = [task for task in tasks if task is not None and task.state == "COMPLETING"]
            if not ending or time.monotonic() > deadline:
                return queue
            if not told:
                self.say(f"{len(ending)} job(s) are just ending: waiting for them")
                told = True
            time.sleep(1)

    def check_all(self, kinds: Iterable[str]) -> None:
        """Show Slurm one job of each kind before any is submitted: a mistake shall not leave half of a graph behind."""
        needed = dict.fromkeys(kinds)
        asked = list(dict.fromkeys([*needed, "cpu"] if needed else []))
        with ThreadPoolExecutor(max(1, len(asked))) as pool:  # each waits for Slurm to answer
            answers = [pool.submit(self.check, kind) for kind in asked]
        for kind, answer in zip(asked, answers, strict=True):
            try:
                answer.result()
            except NoSlurmError:
                raise
            except SlurmError as error:
                raise SlurmError(f"Slurm refuses {kind} jobs: {error}; nothing was submitted") from None

    def check(self, kind: str) -> str:
        """Ask Slurm whether it would take jobs of a kind, and return what it says.

        Raises:
            SlurmError: when it would not, or is not there.
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
        """Note what the queue or somebody else has, and return what has to be submitted, in topological order."""
        missing: dict[str, Experiment] = {}
        elsewhere: dict[str, Experiment] = {}
        arrays: dict[str, Array] = {}  # one object for each job in the queue
        orphans: list[str] = []
        for experiment in graph:
            run = runs[experiment.identity]
            if run.result is not None:
                continue
            claim = read_claim(claim_path(run.path), self.runs_root)
            task = claim.task_in(queue) if claim else None
            if claim is None or task is None:
                waits = any(parent.identity in elsewhere for parent in experiment.parents)
                (elsewhere if waits or run.is_running else missing)[experiment.identity] = experiment
            elif any(parent.identity in missing for parent in experiment.parents):
                orphans.append(f"{task.job_id}_{claim.index}")  # it waits for a job that is gone
                missing[experiment.identity] = experiment
            else:
                assert claim.index is not None  # a table's job alone is in no array
                kind = claim.batch.about.get("kind", "")
                array = arrays.setdefault(task.job_id, Array(kind, {}, job_id=task.job_id))
                found.kept[experiment.identity] = ArrayTask(array, claim.index)
        if orphans:
            slurm("scancel", *orphans)
        found.elsewhere = list(elsewhere.values())
        return list(missing.values())

    def _submit_array(self, array: Array, runs: Mapping[str, RunDirectory]) -> None:
        """Claim, submit, note: in this order, so that a crash in between leaves a trace that the next launch reads."""
        paths = {index: runs[item.identity].path for index, item in array.tasks.items()}
        batch = SbatchCall.create(self.runs_root, kind=array.kind, runs=paths, dependency=array.dependency)
        for index, path in paths.items():
            write_claim(claim_path(path), Assignment(batch, index))
            runs[array.tasks[index].identity].say_queued()
        write_text(batch.script, self.script_of(array, batch.folder))
        try:
            array.job_id = _submit(batch)
        except SlurmSilentError:
            raise  # it may have the job: the claims stay, and the next launch finds it by its script, or submits again
        except (SlurmError, OSError):
            for path in paths.values():
                withdraw_claim(claim_path(path), batch)
            raise

    def script_of(self, array: Array, folder: Path) -> str:
        """Return the script of an array whose dependencies have their numbers."""
        return script_text(
            command=["-m", "launch.job", "--batch", str(folder)],
            folder=folder,
            name=f"{self.study}-{array.kind}",
            cluster=self.cluster,
            resources=self.cluster.resources_of(array.kind),
            code=self.code,
            working_directory=self.runs_root.resolve(),
            array=array.indices or None,
            dependency=array.dependency,
            afterwards=["-m", "launch.job.requeue", str(folder)],
        )

    def table_script(self, record: Path, folder: Path, *, after: Sequence[str]) -> str:
        """Return the script of the table's job, which runs when all others have ended, however they ended."""
        return script_text(
            command=["-m", "launch.slurm.report_job", str(record.resolve())],
            folder=folder,
            name=f"{self.study}-table",
            cluster=self.cluster,
            resources=self.cluster.resources_of("cpu"),
            code=self.code,
            working_directory=self.runs_root.resolve(),
            dependency=":".join(["afterany", *after]) if after else None,
        )

    def _submit_table(self, done: Submission, record: Path, queue: Queue) -> None:
        """Submit the table behind everything else, in the place of one that knows only a part of it."""
        path = table_claim_path(record)
        old = read_claim(path, self.runs_root)
        waiting = old.task_in(queue) if old else None
        if not done.arrays and (waiting or not done.kept):
            done.table_job = waiting.job_id if waiting else None
            return
        if waiting:
            slurm("scancel", waiting.job_id)
        arrays = [*(task.array for task in done.kept.values()), *done.arrays]
        after = sorted({array.submitted_id for array in arrays})
        batch = SbatchCall.create(self.runs_root, kind="table", runs={}, dependency=":".join(["afterany", *after]))
        write_text(batch.script, self.table_script(record, batch.folder, after=after))
        write_claim(path, Assignment(batch, None))
        try:
            done.table_job = _submit(batch)
        except (SlurmError, OSError) as error:
            done.error = f"the table: {error}"
            return
        done.num_calls += 1


def _submit(batch: SbatchCall) -> str:
    """Hand a batch to sbatch; where that fails, look whether Slurm has taken the job nevertheless.

    sbatch gives up on a controller that answers too late, which may have queued the job all the same.
    """
    try:
        job_id = submit(batch.script)
    except SlurmSilentError:
        found = queue_of([]).job_of(str(batch.script))
        if found is None:
            raise
        job_id = found
    batch.note_job(job_id)
    return job_id
