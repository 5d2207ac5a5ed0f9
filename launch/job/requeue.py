"""After srun, in a job's script: see to it that a job which can go on does, and say with what code the script ends.

    python -m launch.job.requeue FOLDER EXIT_CODE

One process a job, when its ranks are gone. A job that saved and left goes back into the queue
(slurm.requeue_or_wait). One whose process was killed does too: by the kernel that ran out of memory, by somebody's
`kill -9`, or because another rank's node was lost. Slurm does that by itself only for a preemption or a node that
failed, and only while the job still runs. A killed job goes on from its last checkpoint, as often as it has come
further since the kill before; ``MAX_KILLS`` times in a row without is a failure.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import PEER_LOST_EXIT_CODE
from launch.job import slurm
from launch.slurm.assignments import SbatchCall, is_given_to

MAX_KILLS = 3
"""Chosen by us."""


def main(arguments: Sequence[str]) -> int:
    """Queue the job again where that makes sense; return the exit code of its script: 0 only with a result."""
    if len(arguments) != 2:
        print("usage: python -m launch.job.requeue FOLDER EXIT_CODE", file=sys.stderr)
        return 2
    batch, code = SbatchCall(Path(arguments[0])), int(arguments[1])
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    run = RunDirectory.open(batch.run_path(index))
    said = run.progress or {}
    if run.result is not None:
        return 0
    if said.get("state") == "failed" or not is_given_to(batch, index, run):
        return code
    job = slurm.query_job()
    record_exit(run, "preempted" if job.is_preempted else str(said.get("signal") or f"exit code {code}"))
    was_killed = said.get("state") != "interrupted"
    if was_killed and not job.is_preempted and not (code > 128 or code == PEER_LOST_EXIT_CODE):
        return code
    if was_killed and job.is_running and not job.is_preempted and is_crash_loop(run, code):
        return code
    signal_name = "SIGUSR2" if was_killed and not job.is_preempted else said.get("signal")
    if was_killed:
        write_log(run, f"killed (exit code {code}): goes on from {where_from(run)}")
    run.say_queued(step=(read_json(run.path / "durable.json") or {"history_step": 0})["history_step"])
    if not slurm.requeue_or_wait(job, signal_name):
        run.write_progress(**{**said, "state": "interrupted"})
    return code


def is_crash_loop(run: RunDirectory, code: int) -> bool:
    """Note a kill; tell whether the last ones all came at the same place, and say so."""
    kills = [*(read_json(run.path / "kills.json") or []), {"time": time.time(), "progress": progress_marker(run)}]
    last = kills[-MAX_KILLS:]
    hopeless = len(last) == MAX_KILLS and all(kill["progress"] == last[0]["progress"] for kill in last)
    write_json(run.path / "kills.json", [] if hopeless else kills)  # launched again, it gets as many tries again
    if hopeless:
        reason = f"killed {MAX_KILLS} times at the same place (exit code {code}; out of memory?)"
        run.write_progress(**{**(run.progress or {}), "state": "failed", "error": reason})
        print(reason, file=sys.stderr)
    return hopeless


def where_from(run: RunDirectory) -> str:
    """Return from where a killed experiment goes on."""
    step = (read_json(run.path / "durable.json") or {}).get("history_step")
    return f"the checkpoint at step {step}" if step else "the start: there is no checkpoint yet"


def write_log(run: RunDirectory, line: str) -> None:
    """Add a line to the log of a run."""
    with contextlib.suppress(OSError), run.log_path.open("a") as log:  # the disk may be full
        print(time.strftime("%H:%M:%S"), line, file=log)


def record_exit(run: RunDirectory, why: str) -> None:
    """Add to the list of starts how the last one ended; ``status`` counts preemptions there."""
    path = run.path / "launches.json"
    launches = read_json(path) or []
    if launches:
        write_json(path, [*launches[:-1], {**launches[-1], "left": why}])


def progress_marker(run: RunDirectory) -> list[int]:
    """Return numbers that change as an experiment makes durable progress."""
    history = read_json(run.path / "durable.json") or {}
    features = [path.stat().st_size for path in (run.path / "features").rglob("*.npz")]
    return [history.get("history_step", 0), len(features), sum(features)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
