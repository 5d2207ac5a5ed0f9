"""Warnings and failures that a local launch prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from crisscross.run.run_log import warnings_in
from crisscross.run.state import RunState
from launch.console import print_line, short_path, this_command
from launch.local.jobs import LocalJob
from launch.study.record import last_lines

LOG_LINES = 10  # ours: lines of a failed experiment's log that are shown


def report_warnings(jobs: Sequence[LocalJob], console: Console) -> None:
    """Print each warning of this launch's runs once, with its log."""
    logs: dict[str, list[Path]] = {}
    for job in jobs:
        if not job.kept:
            for text in warnings_in(job.run.log_path):
                logs.setdefault(text, []).append(job.run.log_path)
    for text, paths in logs.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        print_line(console, f"warning: {text} (log: {short_path(paths[0])}{others})", style="yellow")


def report_failures(jobs: Sequence[LocalJob], console: Console) -> int:
    """Print failed and interrupted experiments and return the exit code."""
    for job in jobs:
        if job.state is RunState.FAILED:
            log = short_path(job.run.log_path)
            print_line(console, f"\nfailed: {job.experiment.label}: {job.reason}", style="red")
            for line in last_lines(job.run.log_path, num_lines=LOG_LINES):
                print_line(console, f"    {line}")
            print_line(console, f"    log: {log}")
    count = {state: sum(job.state == state for job in jobs) for state in {job.state for job in jobs}}
    if count.get(RunState.FAILED):
        lost = count.get(RunState.PARENT_FAILED, 0)
        waiting = f"; {lost} experiment(s) that need them did not run" if lost else ""
        print_line(
            console,
            f"{count[RunState.FAILED]} experiment(s) failed{waiting}. Try them again with: {this_command()}",
        )
        return 1
    if count.get(RunState.INTERRUPTED):
        print_line(
            console, f"{count[RunState.INTERRUPTED]} experiment(s) were interrupted. Go on with: {this_command()}"
        )
        return 75
    return 0
