"""Requeue a job that can resume, and return the exit code of its script, which calls this after srun.

    python -m launch.job.requeue FOLDER EXIT_CODE

It is one process a job, after the ranks have ended. A job that saved a checkpoint and exited is requeued
(slurm.requeue_or_wait). So is one whose process was killed: by the kernel for lack of memory, by `kill -9`, or because
the node of another rank was lost. Slurm itself requeues only after a preemption or a node failure, and only while the
job still runs. A killed job resumes from its last checkpoint if it made progress since the previous kill;
``MAX_KILLS`` kills in a row without progress are a failure.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import PEER_LOST_EXIT_CODE
from launch.job import slurm
from launch.slurm.assignments import SbatchCall, is_assigned_to

MAX_KILLS = 3  # ours


def main(arguments: Sequence[str]) -> int:
    """Requeue the job if it can resume; return its exit code.

    The exit code is 0 only with a result.
    """
    if len(arguments) != 2:
        print("usage: python -m launch.job.requeue FOLDER EXIT_CODE", file=sys.stderr)
        return 2
    call, code = SbatchCall(Path(arguments[0])), int(arguments[1])
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    run = RunDirectory.open(call.run_path(index))
    progress = run.progress or {}
    if run.result is not None:
        return 0
    if progress.get("state") == RunState.FAILED or not is_assigned_to(call, index, run):
        return code
    job = slurm.query_job()
    record_exit(run, "preempted" if job.is_preempted else str(progress.get("signal") or f"exit code {code}"))
    was_killed = progress.get("state") != RunState.INTERRUPTED
    if was_killed and not job.is_preempted and not (code > 128 or code == PEER_LOST_EXIT_CODE):
        return code
    if was_killed and job.is_running and not job.is_preempted and is_crash_loop(run, code):
        return code
    signal_name = "SIGUSR2" if was_killed and not job.is_preempted else progress.get("signal")
    if was_killed:
        write_log(run, f"killed (exit code {code}): resumes from {resume_point(run)}")
    run.record_queued(step=(read_json(run.path / "durable.json") or {"history_step": 0})["history_step"])
    if not slurm.requeue_or_wait(job, signal_name):
        run.write_progress(**{**progress, "state": RunState.INTERRUPTED})
    return code


def is_crash_loop(run: RunDirectory, code: int) -> bool:
    """Record a kill; return whether the last ones brought no progress.

    Then the experiment has failed.
    """
    kills = [*(read_json(run.path / "kills.json") or []), {"time": time.time(), "progress": progress_marker(run)}]
    last = kills[-MAX_KILLS:]
    is_loop = len(last) == MAX_KILLS and all(kill["progress"] == last[0]["progress"] for kill in last)
    write_json(run.path / "kills.json", [] if is_loop else kills)  # the next launch gets as many attempts
    if is_loop:
        reason = f"killed {MAX_KILLS} times at the same place (exit code {code}; out of memory?)"
        run.write_progress(**{**(run.progress or {}), "state": RunState.FAILED, "error": reason})
        print(reason, file=sys.stderr)
    return is_loop


def resume_point(run: RunDirectory) -> str:
    """Return a description of the point from which a killed experiment resumes."""
    step = (read_json(run.path / "durable.json") or {}).get("history_step")
    return f"the checkpoint at step {step}" if step else "the start: there is no checkpoint yet"


def write_log(run: RunDirectory, line: str) -> None:
    """Add a line to the log of a run."""
    with contextlib.suppress(OSError), run.log_path.open("a", encoding="utf-8") as log:  # the disk may be full
        print(time.strftime("%H:%M:%S"), line, file=log)


def record_exit(run: RunDirectory, why: str) -> None:
    """Record how the last start ended in ``launches.json``, where ``status`` counts preemptions."""
    path = run.path / "launches.json"
    launches = read_json(path) or []
    if launches:
        write_json(path, [*launches[:-1], {**launches[-1], "left": why}])


def progress_marker(run: RunDirectory) -> list[int]:
    """Return numbers that change when an experiment makes durable progress."""
    history = read_json(run.path / "durable.json") or {}
    features = [path.stat().st_size for path in (run.path / "features").rglob("*.npz")]
    return [history.get("history_step", 0), len(features), sum(features)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
