"""What a launch does and says, from the header to the table."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from crisscross.data.catalogue import describe_data
from crisscross.record import mask_passwords, table_name
from crisscross.run_directory import RunDirectory
from launch.capacity import capacity_of
from launch.delivery import delivering, refill
from launch.display import Display, say
from launch.environment import UnusableEnvironmentError
from launch.graph import Graph
from launch.local import Job, LocalRunner, job_command
from launch.outcome import print_report, print_table, say_next, variants
from launch.records import StudyRunningError, claim_path, last_lines, study_lock, write_record
from launch.run_log import warnings_in
from launch.standing import standing_of
from launch.study import Plan, create_runs

LOG_LINES = 10
"""Lines of a failed experiment's log that are shown."""


def launch(plans: Sequence[Plan], *, console: Console, command: Callable[[Path], Sequence[str]] = job_command) -> int:
    """Run what studies lack, as one graph in which what they share is run once; show progress, print their tables.

    Args:
        plans: the studies, of one place.
        console: where to.
        command: run directory -> argv of its job.

    Returns:
        Exit code: 0 all done, 1 something failed, 75 interrupted from elsewhere, 130 stopped by a signal.

    Raises:
        StudyRunningError: when another process runs one of these studies.
        UnusableEnvironmentError: if no job can run in this environment; what has not begun is left as it was.
        ValueError, OSError: one line, when the machine cannot do what is asked.
    """
    first = plans[0]
    cluster = first.launch.cluster
    if cluster is not None:
        from launch import slurm_launch  # which builds on this module

        # Each finds in the queue what it shares with those before.
        together = variants(plans)
        codes = [slurm_launch.launch(plan, cluster, console=console, together=together) for plan in plans]
        if together and not first.launch.dry_run and all(slurm_launch.is_done(plan) for plan in plans):
            codes.append(0 if print_report(plans, console) else 1)  # no job is there to make it
            say_next(first, console)
        return max(codes)
    graph = Graph(experiment for plan in plans for experiment in plan.graph)
    capacity = capacity_of(graph, max_parallel=first.launch.max_parallel)
    at_a_time = capacity.at_a_time(graph)
    for plan in plans:
        print_header(plan, console, how=f"{at_a_time} at a time")
    if len(plans) > 1:
        say(console, f"in all: {_counts(graph)}")
    if first.launch.dry_run:
        for plan in plans:
            print_graph(plan, console)
        say(console, "dry_run: every config is valid; the clips are ready; nothing was started, no run directory made")
        return 0
    make_writable(first.runs_root)
    with contextlib.ExitStack() as locks:
        for plan in plans:
            locks.enter_context(study_lock(plan.runs_root, plan.name))
            _require_none_on_slurm(plan)
        runs = {identity: run for plan in plans for identity, run in register(plan, where="local").items()}
        runner = LocalRunner(graph, runs, capacity, Display(console, at_a_time=at_a_time), command)
        with delivering(list(runs.values()), tracking=first.config["tracking"]):
            jobs = runner.run()
        if runner.unusable:
            _report_failures(jobs, console)
            raise UnusableEnvironmentError(f"no job can run here: {runner.unusable}")
        if not runner.was_stopped and first.config["tracking"]["delivery"] != "off":
            for plan in plans:
                ours = [runs[experiment.identity] for experiment in plan.graph]
                refill(ours, study=plan.name, tracking=plan.config["tracking"])
    if runner.was_stopped:
        say(console, f"stopped. What is done is kept; go on with: {this_command()}")
        return 130
    _report_warnings(jobs, console)
    code = _report_failures(jobs, console)
    has_tables = print_report(plans, console) if len(plans) > 1 else print_table(first, console)
    say_next(first, console)
    return code if has_tables else code or 1


def make_writable(runs_root: Path) -> None:
    """Make sure that run directories can be made, before anything is computed."""
    try:
        (runs_root / "studies").mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=runs_root / "studies"):
            pass
    except OSError as error:
        raise OSError(f"runs_root={runs_root}: {error.strerror}: choose a folder you can write") from error


def help_text(studies: Sequence[str]) -> str:
    """Return what ``--help`` prints."""
    main = sys.modules["__main__"]
    return "\n".join(
        [
            (main.__doc__ or "").strip(),
            "",
            "Settings are key=value: those of experiments/conf/launch.yaml (seeds, dry_run, max_parallel), the axes",
            f"of experiments/conf/study/{{{','.join(studies)}}}.yaml, all keys of pretrain.yaml, downstream.yaml.",
            "",
            "On a Slurm cluster: hydra/launcher=slurm cluster.partition=NAME cluster.account=NAME, or your own file.",
            "experiments/conf/hydra/launcher/template.yaml explains what can be set below `cluster`.",
        ]
    )


def _require_none_on_slurm(plan: Plan) -> None:
    """Refuse to run here what a job in the queue will run."""
    claimed = [item for item in plan.graph if claim_path(item.path).exists() and standing_of(item.path).state != "done"]
    if not claimed:
        return
    from launch.claims import queue_of, read_claim
    from launch.sbatch import NoSlurmError

    found = {item.label: read_claim(claim_path(item.path), plan.runs_root) for item in claimed}
    claims = {label: claim for label, claim in found.items() if claim is not None}
    try:
        queue = queue_of(claims.values())
    except NoSlurmError:  # a copy of somebody's runs, on another machine
        return
    for label, claim in claims.items():
        task = claim.task_in(queue)
        if task is not None:
            raise StudyRunningError(
                f"{label} has been given to Slurm (job {task.job_id}_{claim.index}): uv run launch/status.py shows how"
                " it stands, uv run launch/cancel.py takes it back"
            )


def register(plan: Plan, *, where: str, together: Mapping[str, str] | None = None) -> dict[str, RunDirectory]:
    """Write a study's record and make or find its run directories.

    Args:
        plan: the study.
        where: ``"local"`` or ``"slurm"``.
        together: the studies that it was launched with, itself included, and their variants: they get one report.

    Returns:
        Run directories by identity.
    """
    study, tracking = plan.launch.study, plan.config["tracking"]
    about = {
        "study": study.name,
        "script": study.script,
        "table": study.table,
        "fingerprint": plan.fingerprint,
        "tracking": {key: tracking[key] for key in ("uri", "experiment", "delivery")},
        **({"together": dict(together)} if together else {}),  # else those of an earlier launch stay
    }
    record = write_record(
        plan.runs_root, plan.name, experiments=list(plan.graph), about=about, overrides=plan.overrides, where=where
    )
    return create_runs(plan, launched=record["launched"])


def print_header(plan: Plan, console: Console, *, how: str) -> None:
    """Print what is launched: the study, its experiments, its data.

    Args:
        plan: the study.
        console: where to.
        how: how experiments are run, for the line that counts them.
    """
    study, config = plan.launch.study, plan.config
    say(console, f"{plan.name} ({table_name(study.table)}): {study.question}", style="bold")
    say(console, f"{_counts(plan.graph)}; {how}")
    say(console, f"scale {config['scale']['name']}, runs in {plan.runs_root}")
    for line in dict.fromkeys(describe_data(experiment.config["data"]) for experiment in plan.graph):
        say(console, line)
    for line in plan.warnings:
        say(console, f"warning: {line}", style="yellow")


def _counts(graph: Graph) -> str:
    kinds = [experiment.kind for experiment in graph]
    num_done = sum(state == "done" for state in _states(graph).values())
    counts = f"{kinds.count('pretrain')} pretrainings, {kinds.count('downstream')} evaluations"
    return f"{len(kinds)} experiments ({counts}), {num_done} done already"


def print_graph(plan: Plan, console: Console) -> None:
    """Print the experiments, each below those that it needs, and how they stand."""
    states = _states(plan.graph)
    width = max(len(experiment.label) for experiment in plan.graph) + 2
    depth = {experiment.identity: level for level, some in enumerate(plan.graph.levels()) for experiment in some}
    for experiment in plan.graph:
        label = "  " * depth[experiment.identity] + experiment.label
        needs = ", ".join(parent.label for parent in experiment.parents)
        after = f"  after {needs}" if needs else ""
        state = states[experiment.identity]
        say(console, f"{label:<{width}}  {experiment.kind:<10}  {experiment.identity[:12]}  {state}{after}")


def _states(graph: Graph) -> Mapping[str, str]:
    return {
        experiment.identity: standing_of(experiment.path, [parent.path for parent in experiment.parents]).state
        for experiment in graph
    }


def _report_warnings(jobs: Sequence[Job], console: Console) -> None:
    """Show what the runs of this launch have warned of, each once, and in which log it stands."""
    logs: dict[str, list[Path]] = {}
    for job in jobs:
        if not job.kept:
            for text in warnings_in(job.run.log_path):
                logs.setdefault(text, []).append(job.run.log_path)
    for text, paths in logs.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        say(console, f"warning: {text} (log: {_short(paths[0])}{others})", style="yellow")


def _report_failures(jobs: Sequence[Job], console: Console) -> int:
    """Say what did not end well and return the exit code."""
    for job in jobs:
        if job.state == "failed":
            log = _short(job.run.log_path)
            say(console, f"\nfailed: {job.experiment.label}: {job.reason}", style="red")
            for line in last_lines(job.run.log_path, num_lines=LOG_LINES):
                say(console, f"    {line}")
            say(console, f"    log: {log}")
    count = {state: sum(job.state == state for job in jobs) for state in {job.state for job in jobs}}
    if count.get("failed"):
        lost = count.get("parent failed", 0)
        waiting = f"; {lost} experiment(s) that need them did not run" if lost else ""
        say(
            console,
            f"{count['failed']} experiment(s) failed{waiting}. Try them again with: {this_command()}",
        )
        return 1
    if count.get("interrupted"):
        say(console, f"{count['interrupted']} experiment(s) were interrupted. Go on with: {this_command()}")
        return 75
    return 0


def this_command() -> str:
    """Return the command line of this launch; passwords in it are masked."""
    script = _short(Path(sys.argv[0]))
    return mask_passwords(shlex.join(["uv", "run", script, *sys.argv[1:]]))


def _short(path: str | Path | None) -> str:
    """Return a path as seen from here, where that is shorter."""
    if path is None:
        return "?"
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
