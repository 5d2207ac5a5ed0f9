"""After srun, in a job's script: put a job whose process was killed back into the queue, unless that leads nowhere.

    python -m launch.revive FOLDER EXIT_CODE

Slurm queues a job again when it was preempted or its node failed, not when only its process was killed: by the kernel
that ran out of memory, by somebody's `kill -9`, or because another rank's node was lost. Such a job goes on from its
last checkpoint, as often as it has come further since the kill before; ``MAX_KILLS`` times in a row without is a
failure.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crisscross.files import read_json, write_json
from crisscross.run_directory import RunDirectory
from launch import inside_slurm
from launch.claims import Batch

MAX_KILLS = 3
"""Chosen by us."""


def main(arguments: Sequence[str]) -> int:
    """Queue the job again where that makes sense; the exit code says only whether this worked."""
    if len(arguments) != 2:
        print("usage: python -m launch.revive FOLDER EXIT_CODE", file=sys.stderr)
        return 2
    if not inside_slurm.is_left_alone():
        return 0  # cancelled, preempted or out of time: Slurm knows what comes next
    run = RunDirectory.open(Batch(Path(arguments[0])).run_path(int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))))
    if run.result is not None:
        return 0
    kills = [*(read_json(run.path / "kills.json") or []), {"time": time.time(), "progress": how_far(run)}]
    write_json(run.path / "kills.json", kills)
    last = kills[-MAX_KILLS:]
    if len(last) == MAX_KILLS and all(kill["progress"] == last[0]["progress"] for kill in last):
        reason = f"killed {MAX_KILLS} times at the same place (exit code {arguments[1]}; out of memory?)"
        run.write_progress(**{**(run.progress or {}), "state": "failed", "error": reason})
        print(reason, file=sys.stderr)
        return 0
    run.say_queued()
    return 0 if inside_slurm.requeue() else 1


def how_far(run: RunDirectory) -> list[int]:
    """Return numbers that grow as an experiment makes durable progress."""
    history = read_json(run.path / "durable.json") or {}
    features = [path.stat().st_size for path in (run.path / "features").rglob("*.npz")]
    return [history.get("history_step", 0), len(features), sum(features)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
