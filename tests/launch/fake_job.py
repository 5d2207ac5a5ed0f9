"""Stands in for launch/job: takes the run's lock, writes progress, and ends as planned.

    python fake_job.py PLAN.json RUN_DIR

PLAN.json maps labels to {"seconds": how long it works, "end": "done" | "fail" | "kill" | "stubborn" |
"unusable" | "silent"}; the last two end before the experiment begins, with the environment's exit code or with 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from crisscross.run.run_dir import RunDirectory
from launch.job.run import follow_parent

signals: list[int] = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))


def main(plan_path: str, run_path: str) -> int:
    follow_parent()
    run = RunDirectory.open(run_path)
    plan = json.loads(Path(plan_path).read_text()).get(run.label, {})
    seconds, end = plan.get("seconds", 0.1), plan.get("end", "done")
    print(f"threads {os.environ['OMP_NUM_THREADS']}")
    if end in ("unusable", "silent"):
        print("a traceback")
        print("libtorchaudio.so: undefined symbol: install it again")
        return 78 if end == "unusable" else 1
    with run.lock():
        launches = run.path / "launches.json"
        launches.write_text(json.dumps([*(json.loads(launches.read_text()) if launches.exists() else []), {}]))
        began = time.time()
        while time.time() - began < seconds:
            run.write_progress(
                state="running",
                phase="training",
                step=3,
                total=9,
                loss=-0.25,
                rate=40.0,
                rate_unit="clips/s",
                eta_s=7.0,
            )
            if signals and end != "stubborn":
                run.write_progress(state="interrupted", step=3, total=9)
                return 75
            time.sleep(0.02)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "fail":
            run.write_progress(state="failed", error="clip 7 is damaged: remove it")
            print("a line of the log")
            return 1
        run.write_result({"metrics": {}, "time": [began, time.time()]})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
