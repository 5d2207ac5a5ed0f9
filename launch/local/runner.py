"""Run a graph of experiments as processes of this machine.

Finished experiments are kept. An experiment that another process runs is waited for. The others start, parents first,
as many at a time as the machine allows. A job resumes from its own checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState, read_state
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE
from launch.environment import ENVIRONMENT_EXIT_CODE
from launch.local.jobs import LocalJob, job_command
from launch.local.live_display import Display
from launch.resources import Capacity, job_environment, num_processes
from launch.study.graph import Graph
from launch.study.record import last_lines

STOP_SECONDS = 120.0  # ours: jobs may take so long to write a checkpoint before they are killed
SECOND_REQUEST_SECONDS = 1.0  # ours: a Ctrl-C so long after the first request to stop kills the jobs
"""One request may arrive twice: `uv run` passes on a signal that its process group receives as well."""


@dataclass
class LocalRunner:
    """Runner of a graph of experiments.

    Attributes:
        graph: the experiments.
        runs: their run directories, by identity.
        capacity: resources of this machine.
        display: progress display.
        command: returns the argv of a run directory.
        poll_s: seconds between two polls of the jobs.
        stop_seconds: seconds that jobs may take to save and exit after SIGTERM.
        jobs: one per experiment, by identity.
        unusable: why no job can run in this environment; empty if jobs can. Experiments that did not start stay as
            they are.
    """

    graph: Graph
    runs: Mapping[str, RunDirectory]
    capacity: Capacity
    display: Display
    command: Callable[[Path], Sequence[str]] = job_command
    poll_s: float = 0.2
    stop_seconds: float = STOP_SECONDS
    jobs: dict[str, LocalJob] = field(init=False)
    unusable: str = field(init=False, default="")
    _has_begun: bool = field(init=False, default=False)
    _stop_asked: float | None = field(init=False, default=None)
    _kill_asked: bool = field(init=False, default=False)
    _stop_deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.jobs = {item.identity: LocalJob(item, self.runs[item.identity]) for item in self.graph}
        for job in self.jobs.values():
            if job.run.result is not None:
                job.state, job.kept = RunState.DONE, True
            elif read_state(job.run).state is RunState.PARENT_FAILED:
                job.run.write_progress(state=RunState.QUEUED)
        heights = self.graph.heights()
        self._by_urgency = sorted(self.jobs.values(), key=lambda job: -heights[job.experiment.identity])

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the launch."""
        return self._stop_asked is not None

    def run(self) -> list[LocalJob]:
        """Run everything that can run.

        Returns:
            All jobs with their final states.
        """
        with self._signals(), self.display.showing(list(self.jobs.values())):
            try:
                while self._step():
                    self.display.update()
                    time.sleep(self.poll_s)
            finally:
                for job in self._running():  # only after an error in this loop: let them save
                    job.child.terminate()
        return list(self.jobs.values())

    def _step(self) -> bool:
        """Poll every job and start those that can start.

        Returns:
            Whether more is to come.
        """
        for job in self._by_urgency:
            if job.state is RunState.RUNNING and job.attached:
                self._poll_attached(job)
            elif job.state is RunState.RUNNING:
                self._has_begun = self._has_begun or bool(job.progress)
                self._reap(job)
            elif job.state is RunState.WAITING:
                self._block(job)
        if self.was_stopped:
            self._hurry()
            return bool(self._running())
        busy = self._busy()
        if self.unusable:
            return bool(self._running())
        for job in self._by_urgency:
            if job.state is RunState.WAITING and self._is_ready(job, busy):
                self._start(job)
                busy = self._busy()
            if self._running() and not self._has_begun:
                break  # the first one shows whether any can run here
        return any(not job.state.is_over for job in self.jobs.values())

    def _running(self) -> list[LocalJob]:
        """Return the jobs that run as children of this process."""
        return [job for job in self.jobs.values() if job.state is RunState.RUNNING and not job.attached]

    def _parents(self, job: LocalJob) -> list[LocalJob]:
        return [self.jobs[parent.identity] for parent in job.experiment.parents]

    def _block(self, job: LocalJob) -> None:
        """End a job that cannot run because of a parent.

        The parent ended without a result.
        """
        parents = self._parents(job)
        states = {parent.state for parent in parents}
        if RunState.PARENT_FAILED in {state.of_child for state in states}:
            job.reason = ", ".join(parent.experiment.label for parent in parents if parent.state is not RunState.DONE)
            self._end(job, RunState.PARENT_FAILED)
        elif states & {RunState.INTERRUPTED, RunState.PARENT_INTERRUPTED}:
            self._end(job, RunState.PARENT_INTERRUPTED)

    def _busy(self) -> list[LocalJob]:
        return [job for job in self.jobs.values() if job.state is RunState.RUNNING]

    def _is_ready(self, job: LocalJob, busy: Sequence[LocalJob]) -> bool:
        if any(parent.state is not RunState.DONE for parent in self._parents(job)):
            return False
        used = sum(self.capacity.cost(other.experiment.config) for other in busy)
        return used + self.capacity.cost(job.experiment.config) <= self.capacity.total or not busy

    def _start(self, job: LocalJob) -> None:
        try:
            if job.run.is_running:
                job.state, job.attached, job.started = RunState.RUNNING, True, None
                self.display.event(job, "attached to the process that runs it already")
                return
            self._start_process(job)
        except OSError as error:  # no room for its log, no memory for its process: others may still start
            job.reason = f"could not be started: {' '.join(str(error).split())}"
            self._end(job, RunState.FAILED)
            return
        job.state, job.attached = RunState.RUNNING, False
        self.display.event(job, "started" if not job.run.checkpoints.is_dir() else "started again, resumes")

    def _start_process(self, job: LocalJob) -> None:
        config = job.experiment.config
        job.gpus = self._free_gpus(num_processes(config))
        job.started = time.time()
        argv = list(self.command(job.run.path))
        with job.run.log_path.open("ab", buffering=0) as log:
            line = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} starts {' '.join(argv)}\n"
            with contextlib.suppress(OSError):  # a full disk: the job reports what it cannot write
                log.write(line.encode())
            job.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=job_environment(config, gpus=job.gpus),
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )

    def _free_gpus(self, count: int) -> tuple[str, ...]:
        """Return the ids of the least used GPUs."""
        used = [gpu for job in self._running() for gpu in job.gpus]
        return tuple(sorted(self.capacity.gpus, key=used.count)[:count])

    def _reap(self, job: LocalJob) -> None:
        code = job.child.poll()
        if code is None:
            return
        if job.run.result is not None:
            self._end(job, RunState.DONE)
        elif code == ENVIRONMENT_EXIT_CODE or (code > 0 and not self._has_begun):
            job.state, job.process = RunState.WAITING, None
            self.unusable = " ".join(last_lines(job.run.log_path, num_lines=1)) or f"exit code {code}"
        elif code in (INTERRUPTED_EXIT_CODE, -signal.SIGTERM) or (self.was_stopped and code != 1):
            self._end(job, RunState.INTERRUPTED)
        elif job.run.is_running:  # another process was faster
            job.attached, job.process = True, None
        else:
            job.reason = _reason(job, code)
            self._end(job, RunState.FAILED)

    def _poll_attached(self, job: LocalJob) -> None:
        if job.run.result is not None:
            self._end(job, RunState.DONE)
        elif not job.run.is_running:
            status = read_state(job.run)
            if status.state is RunState.FAILED:
                job.reason = status.error or status.state
                self._end(job, status.state)
            else:
                job.state, job.attached = RunState.WAITING, False  # it was interrupted: this launch resumes it

    def _end(self, job: LocalJob, state: RunState) -> None:
        job.state, job.ended = state, time.time()
        progress, word = job.run.progress or {}, state.in_progress_json
        is_written = state in (RunState.DONE, RunState.PARENT_INTERRUPTED) or progress.get("state") == word
        if not is_written:  # killed, or never started
            job.run.write_progress(**{**progress, "state": word, "error": job.reason})
        self.display.event(job, f"{state}: {job.reason}" if job.reason else state)

    def _hurry(self) -> None:
        """Terminate the jobs; kill them after ``stop_seconds`` or a second Ctrl-C."""
        running = self._running()
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + self.stop_seconds
            for job in running:
                job.child.terminate()  # the job alone: its loader workers are needed to finish the step
            if running:
                self.display.print_line(
                    f"stopping: {len(running)} experiment(s) write a checkpoint, up to"
                    f" {self.stop_seconds:.0f} s (Ctrl-C again kills them)"
                )
        elif self._kill_asked or time.monotonic() > self._stop_deadline:
            for job in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.child.pid, signal.SIGKILL)
                job.child.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Record SIGINT, SIGTERM and SIGHUP instead of ending at once."""

        def record(number: int, frame: object) -> None:
            now = time.monotonic()
            if self._stop_asked is None:
                self._stop_asked = now
            elif number == signal.SIGINT and now - self._stop_asked >= SECOND_REQUEST_SECONDS:
                self._kill_asked = True

        old = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _reason(job: LocalJob, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    error = job.progress.get("error")
    return str(error) if error else f"exit code {code}"
