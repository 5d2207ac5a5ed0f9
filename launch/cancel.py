"""Stop a study, or an experiment and all that depend on it. Running jobs save first; launch again to resume.

uv run launch/cancel.py relaxation
uv run launch/cancel.py crisscross-mild-demo-s0      an experiment, by the name that launch/status.py shows
uv run launch/cancel.py                              when only one study runs
uv run launch/cancel.py relaxation runs_root=DIR     run directories that are elsewhere
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json
from crisscross.utils.terminal import print_what_can_be_printed
from launch.slurm.assignments import Assignment, submission_lock, write_assignment
from launch.slurm.commands import QueuedTask, slurm
from launch.slurm.job_status import SlurmView, read_slurm, record_final_states, table_assignment
from launch.study.record import assignment_path, read_records, split_arguments, study_holder


@dataclass(frozen=True)
class Target:
    """Experiments to stop.

    Attributes:
        record: the record of their study.
        members: the experiments, a part of the study's.
    """

    record: Mapping[str, Any]
    members: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """``<study>.<fingerprint>``."""
        return f"{self.record['study']}.{self.record['fingerprint']}"

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole study."""
        return len(self.members) == len(self.record["members"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Stop what runs or waits, print it, and return the exit code."""
    print_what_can_be_printed()
    runs_root, names = split_arguments(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(names):
        print(__doc__.strip())
        return 0
    try:
        found = targets(runs_root, names)
        view = read_slurm(runs_root, [target.record for target in found])
        active = [item for item in found if running(runs_root, item, view) or on_slurm(runs_root, item, view)]
        if len(active) > 1 and not names:
            raise ValueError(f"several studies run: name one of {', '.join(target.name for target in active)}")
        if not active:
            print(f"nothing runs in {runs_root}")
        for target in active:
            for line in [*cancel(runs_root, target, view), *cancel_on_slurm(runs_root, target)]:
                print(line)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def targets(runs_root: Path, names: Sequence[str]) -> list[Target]:
    """Return the targets for names of studies and experiments.

    Without names, the targets are all studies.

    Raises:
        ValueError: if a name is neither.
    """
    everything = read_records(runs_root)
    labels = {member["label"] for record in everything for member in record["members"]}
    studies = [name for name in names if name not in labels]
    whole = read_records(runs_root, studies) if studies or not names else []
    parts = [Target(record, with_dependents(record, name)) for name in names if name in labels for record in everything]
    return [*(Target(record, record["members"]) for record in whole), *(part for part in parts if part.members)]


def with_dependents(record: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    """Return the experiments of a label and all that depend on them."""
    lost = {member["identity"] for member in record["members"] if member["label"] == label}
    size = -1
    while len(lost) != size:
        size = len(lost)
        lost |= {member["identity"] for member in record["members"] if lost & set(member["parents"])}
    return [member for member in record["members"] if member["identity"] in lost]


def running(runs_root: Path, target: Target, view: SlurmView) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and holder (``pid``, ``host``) of local processes, the launcher first."""
    launcher = study_holder(runs_root, target.name) if target.is_whole else None
    found: list[tuple[str, Mapping[str, Any]]] = [(f"launcher of {target.name}", launcher)] if launcher else []
    for member in target.members:
        path = runs_root / member["path"]
        if path in view.assignments and view.task(view.assignments[path]) is not None:  # scancel stops it
            continue
        holder = read_json(path / "holder.json") if RunDirectory(path).is_running else None
        if holder:
            found.append((member["label"], holder))
    return found


def cancel(runs_root: Path, target: Target, view: SlurmView) -> list[str]:
    """Send SIGTERM to its local processes.

    The launcher comes first, or it would start the next experiment.

    Returns:
        One line per process.
    """
    lines = []
    for name, holder in running(runs_root, target, view):
        if holder["host"] != socket.gethostname():
            lines.append(f"{name}: runs on {holder['host']} (process {holder['pid']}): cancel it there")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder["pid"], signal.SIGTERM)
            lines.append(f"{name}: SIGTERM to process {holder['pid']}: it writes a checkpoint and exits")
    return lines


def on_slurm(runs_root: Path, target: Target, view: SlurmView) -> list[tuple[str, Path, Assignment, QueuedTask]]:
    """Return the members of a target that are in Slurm's queue.

    Returns:
        Name, assignment file, assignment and job of each.
    """
    found = []
    for member in target.members:
        path = runs_root / member["path"]
        assignment = view.assignments.get(path)
        if assignment is not None and (task := view.task(assignment)) is not None:
            found.append((member["label"], assignment_path(path), assignment, task))
    return found


def cancel_on_slurm(runs_root: Path, target: Target) -> list[str]:
    """Cancel a target's jobs on Slurm.

    For a whole study, the job of its table is cancelled too.

    Returns:
        One line per job.

    Raises:
        SlurmError: if Slurm refuses.
    """
    jobs, lines = [], []
    with submission_lock(runs_root, print_line=print):  # a launch that submits right now is finished first
        view = read_slurm(runs_root, [target.record])
        found = on_slurm(runs_root, target, view)
        for label, _, assignment, task in found:
            jobs.append(f"{task.job_id}_{assignment.index}")
            what = "writes a checkpoint and leaves" if task.is_running else "will not start"
            lines.append(f"{label}: cancelled job {jobs[-1]}: it {what}")
        table = table_assignment(runs_root, target.record) if target.is_whole else None
        table_task = view.task(table) if table is not None else None
        if table_task is not None:
            jobs.append(table_task.job_id)
            lines.append(f"the table: cancelled job {table_task.job_id}")
        if jobs:
            slurm("scancel", *jobs)
        for _, path, assignment, _ in found:
            write_assignment(path, replace(assignment, cancelled=time.time()))
        record_final_states(runs_root, [target.record], read_slurm(runs_root, [target.record]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
