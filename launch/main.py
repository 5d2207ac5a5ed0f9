"""Expand studies and run them on this machine or on Slurm."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from crisscross.tracking.sync import sync_runs
from crisscross.utils.terminal import print_what_can_be_printed
from launch.console import counts, help_text, print_graph, print_header, print_line, this_command
from launch.environment import UnusableEnvironmentError
from launch.local.failures import report_failures, report_warnings
from launch.local.jobs import job_command
from launch.local.live_display import Display
from launch.local.runner import LocalRunner
from launch.resources import Capacity, capacity_of
from launch.results import print_next_steps, print_report, print_table, study_hashes
from launch.slurm.job_status import require_none_on_slurm, states_of
from launch.slurm.launch import is_done, launch_on_slurm
from launch.study.cluster import ClusterSettings
from launch.study.graph import Graph
from launch.study.plan import Plan, make_plan, make_writable, register
from launch.study.record import StudyRunningError, study_lock
from launch.tracking import syncing


def main(*studies: str, arguments: Sequence[str] | None = None) -> int:
    """Launch studies and return the exit code.

    It is 0 if all is done, 1 failed, 2 wrong usage, 75 interrupted, 130 stopped.

    Args:
        *studies: names of files in ``experiments/conf/study``; several are launched as one graph.
        arguments: the command line; None = that of this process.
    """
    print_what_can_be_printed()
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(overrides):
        print(help_text(studies))
        return 0
    console = Console(stderr=False)
    try:
        return launch([make_plan(study, overrides) for study in studies], console=console)
    except (StudyRunningError, UnusableEnvironmentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command resumes; launch/status.py shows what there is", file=sys.stderr)
        return 130


def launch(plans: Sequence[Plan], *, console: Console, command: Callable[[Path], Sequence[str]] = job_command) -> int:
    """Run what studies lack, as one graph, and print their tables.

    Args:
        plans: the studies, all local or all on one cluster.
        console: output.
        command: returns the argv of a run directory's job.

    Returns:
        Exit code: 0 all done, 1 something failed, 75 interrupted by another process, 130 stopped by a signal.

    Raises:
        StudyRunningError: if another process runs one of these studies.
        UnusableEnvironmentError: if no job can run in this environment. Experiments that did not start stay as they
            are.
        ValueError, OSError: if the machine or the cluster cannot run them; one line.
    """
    cluster = plans[0].launch.cluster
    if cluster is not None:
        return _submit(plans, cluster, console)
    graph = Graph(experiment for plan in plans for experiment in plan.graph)
    capacity = capacity_of(graph, max_parallel=plans[0].launch.max_parallel)
    _print_headers(plans, graph, capacity.at_a_time(graph), console)
    if plans[0].launch.dry_run:
        return 0
    return _run_here(plans, graph, capacity, console, command)


def _submit(plans: Sequence[Plan], cluster: ClusterSettings, console: Console) -> int:
    """Submit the studies; print their report if nothing is left to submit."""
    first = plans[0]
    together = study_hashes(plans)
    # One after another: each finds in the queue what it shares with those before.
    codes = [launch_on_slurm(plan, cluster, console=console, together=together) for plan in plans]
    if together and not first.launch.dry_run and all(is_done(plan) for plan in plans):
        codes.append(0 if print_report(plans, console) else 1)  # no job will make it
        print_next_steps(first, console)
    return max(codes)


def _print_headers(plans: Sequence[Plan], graph: Graph, at_a_time: int, console: Console) -> None:
    """Print what each study has and lacks.

    A dry run also prints its experiments.
    """
    states = states_of(graph)
    for plan in plans:
        print_header(plan, console, how=f"{at_a_time} at a time", states=states)
    if len(plans) > 1:
        print_line(console, f"in all: {counts(graph, states)}")
    if plans[0].launch.dry_run:
        for plan in plans:
            print_graph(plan, console, states=states)
        print_line(
            console, "dry_run: every config is valid; the clips are ready; nothing was started, no run directory made"
        )


def _run_here(
    plans: Sequence[Plan],
    graph: Graph,
    capacity: Capacity,
    console: Console,
    command: Callable[[Path], Sequence[str]],
) -> int:
    """Run a graph on this machine and return the exit code.

    After the runs, it syncs MLflow and prints failures and tables.
    """
    first = plans[0]
    make_writable(first.runs_root)
    with contextlib.ExitStack() as locks:
        for plan in plans:
            locks.enter_context(study_lock(plan.runs_root, plan.name))
            require_none_on_slurm(plan.graph, plan.runs_root)
        runs = {identity: run for plan in plans for identity, run in register(plan, where="local").items()}
        runner = LocalRunner(graph, runs, capacity, Display(console, at_a_time=capacity.at_a_time(graph)), command)
        with syncing(list(runs.values()), tracking=first.config["tracking"]):
            jobs = runner.run()
        if runner.unusable:
            report_failures(jobs, console)
            raise UnusableEnvironmentError(f"no job can run here: {runner.unusable}")
        if not runner.was_stopped and first.config["tracking"]["delivery"] != "off":
            for plan in plans:
                tracking = plan.config["tracking"]
                of_plan = [runs[experiment.identity] for experiment in plan.graph]
                sync_runs(of_plan, tracking["uri"], tracking["experiment"], verify=True)
    if runner.was_stopped:
        print_line(console, f"stopped. What is done is kept; go on with: {this_command()}")
        return 130
    report_warnings(jobs, console)
    code = report_failures(jobs, console)
    has_tables = print_report(plans, console) if len(plans) > 1 else print_table(first, console)
    print_next_steps(first, console)
    return code if has_tables else code or 1
