"""The commands of one Slurm: submit, look, wait, cancel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.leftovers import MARK as OF_A_TEST
from tests.slurm.daemons import ClusterError, search_path, wait_for

FOREIGN = ("SLURM", "SBATCH", "SQUEUE", "SRUN", "SACCT", OF_A_TEST)
"""How variables begin that are another Slurm's, or of one test: daemons outlive it."""

QUEUE_FIELDS = {
    "job_id": "%A",
    "array_job_id": "%F",
    "array_task_id": "%K",
    "state": "%T",
    "reason": "%r",
    "nodes": "%N",
    "partition": "%P",
    "name": "%j",
    "command": "%o",
}


class SlurmClient:
    """Runs Slurm commands against the cluster whose ``slurm.conf`` lies in :attr:`home`."""

    folder: Path | None = None
    _submissions_limited = False

    @property
    def home(self) -> Path:
        """The cluster's folder."""
        if self.folder is None:
            raise ClusterError("the cluster is not started")
        return self.folder

    def environment(self) -> dict[str, str]:
        """Return all that sbatch, squeue and a launcher need to talk to this cluster."""
        return {"SLURM_CONF": str(self.home / "slurm.conf")}

    def run(self, *argv: str, timeout_s: float = 300.0, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; its output is captured, its exit status not checked."""
        return subprocess.run(
            argv, env=self.full_environment(), text=True, capture_output=True, timeout=timeout_s, check=False, **options
        )  # type: ignore[call-overload]

    def must(self, *argv: str, **options: object) -> str:
        """Run a command that must succeed; return its output without the last newline."""
        done = self.run(*argv, **options)  # type: ignore[arg-type]
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout.rstrip("\n")

    def submit(self, command: str, *options: str) -> str:
        """Submit ``sbatch OPTIONS --wrap COMMAND`` with its output in the cluster's folder; return the job's id."""
        output = f"--output={self.home}/log/job-%A-%a.out"
        return self.must("sbatch", "--parsable", output, "--open-mode=append", *options, f"--wrap={command}")

    def squeue(self, *options: str) -> list[dict[str, str]]:
        """Return the queue, array tasks one by one, as dicts with the keys of ``QUEUE_FIELDS``."""
        lines = self.must("squeue", "-h", "-r", "-o", "|".join(QUEUE_FIELDS.values()), *options).splitlines()
        return [dict(zip(QUEUE_FIELDS, line.split("|", len(QUEUE_FIELDS) - 1), strict=True)) for line in lines]

    def job_states(self, job_id: str) -> dict[str, str]:
        """Return the state of a job, ``{"7": "RUNNING"}``, or of an array's tasks, ``{"7_0": ..., "7_1": ...}``.

        A job is known until 5 minutes after its end (MinJobAge).
        """
        rows = self.squeue("--states=all", f"--jobs={job_id}")
        return {_name(row): row["state"] for row in rows}

    def wait_for_states(self, job_id: str, *states: str, timeout_s: float = 300.0) -> dict[str, str]:
        """Wait until a job, or every task of an array, is in one of ``states``; return the states."""

        def reached() -> bool:
            now = self.job_states(job_id)
            return bool(now) and set(now.values()) <= set(states)

        wait_for(reached, what=f"job {job_id} {' or '.join(states)}", timeout_s=timeout_s, log=self.explain)
        return self.job_states(job_id)

    def cancel_everything(self, timeout_s: float = 300.0) -> None:
        """Cancel all jobs and wait until none is left, not even completing."""
        # As 7_1, not by the id that a pending task of array 7 has of its own: scancel may call that one invalid.
        if jobs := {_name(row) for row in self.squeue()}:
            self.run("scancel", *jobs)
        wait_for(lambda: not self.squeue(), what="an empty queue", timeout_s=timeout_s, log=self.explain)

    def limit_submissions(self, limit: int | None) -> None:
        """Let a user have at most ``limit`` jobs in the queue (array tasks count); sbatch refuses more."""
        value = "-1" if limit is None else str(limit)
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", f"MaxSubmitJobs={value}")
        wanted = "MaxSubmitJobs=" + ("" if limit is None else f"{limit}(")

        def known() -> bool:
            shown = self.must("scontrol", "show", "assoc_mgr", "flags=assoc", "accounts=lab", "users=root")
            of_user = shown[shown.index("UserName=root(") :].split()
            return any(word == wanted or (limit is not None and word.startswith(wanted)) for word in of_user)

        self._submissions_limited = limit is not None
        wait_for(known, what=f"MaxSubmitJobs={value} in the controller", timeout_s=300, log=self.explain)

    def full_environment(self, **more: str) -> dict[str, str]:
        """Return this process's environment without another Slurm's variables, with this cluster's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        return {**kept, "PATH": search_path(), **self.environment(), **more}

    def explain(self) -> str:
        """Return what to look at when something did not happen."""
        shown = [self.run(*argv.split()) for argv in ("sinfo -N -l", "squeue -r --states=all")]
        return "\n".join(done.stdout + done.stderr for done in shown)


def _name(row: dict[str, str]) -> str:
    return row["job_id"] if row["array_task_id"] == "N/A" else f"{row['array_job_id']}_{row['array_task_id']}"
