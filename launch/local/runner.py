"""Run a graph of experiments as processes of this machine.

Done work is kept, work that another process does is waited for, the rest is started: as many at a time as the
machine allows, parents first. A job resumes by itself, so starting is all there is to do.
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
from crisscross.utils.signals import INTERRUPTED_EXIT_CODE
from launch.environment import ENVIRONMENT_EXIT_CODE
from launch.local.jobs import LocalJob, job_command
from launch.local.live_display import Display
from launch.resources import Capacity, job_environment, num_processes
from launch.study.graph import Graph
from launch.study.record import last_lines

STOP_SECONDS = 120.0
"""How long jobs may take to write a checkpoint before they are killed (chosen by us)."""

SECOND_REQUEST_SECONDS = 1.0
"""A Ctrl-C so long after the first request to stop means: at once (chosen by us).

One request may arrive twice: `uv run` passes a signal on that its process group got as well.
"""

ENDED = ("done", "failed", "interrupted", "parent failed", "parent interrupted")
_PROGRESS_STATES = {"failed": "failed", "interrupted": "interrupted", "parent failed": "blocked"}
"""What progress.json says of an experiment that ended like this."""


@dataclass
class LocalRunner:
    """Runs a graph.

    Attributes:
        graph: the experiments.
        runs: their run directories, by identity.
        capacity: what this machine has.
        display: where progress is shown.
        command: run directory -> argv.
        poll_s: seconds between two looks at the jobs.
        stop_seconds: how long jobs may take to leave when they are told to.
        unusable: why no job can run in this environment; empty where one could. What has not begun is left as it was.
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
                job.state, job.kept = "done", True
            elif (job.run.progress or {}).get("state") == "blocked":
                job.run.write_progress(state="queued")
        heights = self.graph.heights()
        self._by_urgency = sorted(self.jobs.values(), key=lambda job: -heights[job.experiment.identity])

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the launch."""
        return self._stop_asked is not None

    def run(self) -> list[LocalJob]:
        """Run everything that can run and return how each experiment ended."""
        with self._signals(), self.display.showing(list(self.jobs.values())):
            try:
                while self._step():
                    self.display.update()
                    time.sleep(self.poll_s)
            finally:
                for job in self._running():  # only after an error of our own: tell them to save and leave
                    job.child.terminate()
        return list(self.jobs.values())

    def _step(self) -> bool:
        """Look at every job, start what can start; return whether there is more to wait for."""
        for job in self._by_urgency:
            if job.state == "running":
                self._has_begun = self._has_begun or bool(job.progress)
                self._reap(job)
            elif job.state == "attached":
                self._look_at_attached(job)
            elif job.state == "waiting":
                self._block(job)
        if self.was_stopped:
            self._hurry()
            return bool(self._running())
        busy = self._busy()
        if self.unusable:
            return bool(self._running())
        for job in self._by_urgency:
            if job.state == "waiting" and self._is_ready(job, busy):
                self._start(job)
                busy = self._busy()
            if self._running() and not self._has_begun:
                break  # the first one shows whether any can run here
        return any(job.state not in ENDED for job in self.jobs.values())

    def _running(self) -> list[LocalJob]:
        return [job for job in self.jobs.values() if job.state == "running"]

    def _parents(self, job: LocalJob) -> list[LocalJob]:
        return [self.jobs[parent.identity] for parent in job.experiment.parents]

    def _block(self, job: LocalJob) -> None:
        """End what cannot run because a parent ended without a result."""
        states = {parent.state for parent in self._parents(job)}
        if states & {"failed", "parent failed"}:
            job.reason = ", ".join(parent.experiment.label for parent in self._parents(job) if parent.state != "done")
            self._end(job, "parent failed")
        elif states & {"interrupted", "parent interrupted"}:
            self._end(job, "parent interrupted")

    def _busy(self) -> list[LocalJob]:
        return [job for job in self.jobs.values() if job.state in ("running", "attached")]

    def _is_ready(self, job: LocalJob, busy: Sequence[LocalJob]) -> bool:
        if any(parent.state != "done" for parent in self._parents(job)):
            return False
        used = sum(self.capacity.cost(other.experiment.config) for other in busy)
        return used + self.capacity.cost(job.experiment.config) <= self.capacity.total or not busy

    def _start(self, job: LocalJob) -> None:
        try:
            if job.run.is_running:
                job.state, job.started = "attached", None
                self.display.event(job, "attached to the process that runs it already")
                return
            self._start_process(job)
        except OSError as error:  # no room for its log, no memory for its process: the others may have better luck
            job.reason = f"could not be started: {' '.join(str(error).split())}"
            self._end(job, "failed")
            return
        job.state = "running"
        self.display.event(job, "started" if not job.run.checkpoints.is_dir() else "started again, resumes")

    def _start_process(self, job: LocalJob) -> None:
        config = job.experiment.config
        job.gpus = self._free_gpus(num_processes(config))
        job.started = time.time()
        argv = list(self.command(job.run.path))
        with job.run.log_path.open("ab", buffering=0) as log:
            line = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} starts {' '.join(argv)}\n"
            with contextlib.suppress(OSError):  # a full disk: the job itself will say what cannot be written
                log.write(line.encode())
            job.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=job_environment(config, gpus=job.gpus),
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we pass it on once
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
            self._end(job, "done")
        elif code == ENVIRONMENT_EXIT_CODE or (code > 0 and not self._has_begun):
            job.state, job.process = "waiting", None
            self.unusable = " ".join(last_lines(job.run.log_path, num_lines=1)) or f"exit code {code}"
        elif code in (INTERRUPTED_EXIT_CODE, -signal.SIGTERM) or (self.was_stopped and code != 1):
            self._end(job, "interrupted")
        elif job.run.is_running:  # somebody else was faster
            job.state, job.process = "attached", None
        else:
            job.reason = _reason(job, code)
            self._end(job, "failed")

    def _look_at_attached(self, job: LocalJob) -> None:
        if job.run.result is not None:
            self._end(job, "done")
        elif not job.run.is_running:
            progress = job.run.progress or {}
            if progress.get("state") == "failed":
                job.reason = str(progress.get("error", "failed"))
                self._end(job, "failed")
            else:
                job.state = "waiting"  # it was interrupted: ours to go on with

    def _end(self, job: LocalJob, state: str) -> None:
        job.state, job.ended = state, time.time()
        said = job.run.progress or {}
        if _PROGRESS_STATES.get(state, said.get("state")) != said.get("state"):  # killed, or never started
            job.run.write_progress(**{**said, "state": _PROGRESS_STATES[state], "error": job.reason})
        self.display.event(job, f"{state}: {job.reason}" if job.reason else state)

    def _hurry(self) -> None:
        """Tell the jobs to leave; kill them when it takes too long, or on a second Ctrl-C."""
        running = self._running()
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + self.stop_seconds
            for job in running:
                job.child.terminate()  # the job alone: its loader workers are needed to finish the step
            if running:
                self.display.say(
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
        """Note SIGINT, SIGTERM and SIGHUP instead of dying from them."""

        def note(number: int, frame: object) -> None:
            now = time.monotonic()
            if self._stop_asked is None:
                self._stop_asked = now
            elif number == signal.SIGINT and now - self._stop_asked >= SECOND_REQUEST_SECONDS:
                self._kill_asked = True

        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
