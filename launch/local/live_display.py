"""Progress of a local launch: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crisscross.run.state import RunState
from launch.console import clock, describe
from launch.local.jobs import LocalJob

HEARTBEAT_S = 10.0  # ours: seconds between two plain lines of a running experiment

_COLORS = {
    RunState.DONE: "green",
    RunState.FAILED: "red",
    RunState.PARENT_FAILED: "red",
    RunState.INTERRUPTED: "yellow",
}


class Display:
    """The progress display of a local launch."""

    def __init__(self, console: Console, *, at_a_time: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        """Create the display; it shows nothing yet.

        Args:
            console: output.
            at_a_time: experiments that run at a time, for the estimate of the remaining time.
            heartbeat_s: seconds between two plain lines of a running experiment.
        """
        self._console = console
        self._at_a_time = max(1, at_a_time)
        self._heartbeat_s = heartbeat_s
        self._jobs: Sequence[LocalJob] = ()
        self._live: Live | None = None
        self._began = time.time()
        self._next_heartbeat = self._began + heartbeat_s

    @contextlib.contextmanager
    def showing(self, jobs: Sequence[LocalJob]) -> Iterator[None]:
        """Show jobs inside a ``with`` block."""
        self._jobs = jobs
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4, get_renderable=self._live_table, transient=True) as live:
            self._live = live
            yield
        self._live = None

    def print_line(self, text: str, *, style: str | None = None) -> None:
        """Print one line above the live table."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def event(self, job: LocalJob, what: str) -> None:
        """Print that a job has started or ended."""
        took = f" ({clock(job.ended - job.started)})" if job.ended and job.started else ""
        elapsed = clock(time.time() - self._began)
        self.print_line(f"[{elapsed:>7}] {job.experiment.label}: {what}{took}", style=_COLORS.get(job.state))

    def update(self) -> None:
        """Print the plain lines that are due. The live table updates itself."""
        now = time.time()
        if self._console.is_terminal or now < self._next_heartbeat:
            return
        self._next_heartbeat = now + self._heartbeat_s
        for job in self._jobs:
            if job.state is RunState.RUNNING:
                self.print_line(f"[{clock(now - self._began):>7}] {job.experiment.label}: {describe(job.progress)}")
        self.print_line(f"[{clock(now - self._began):>7}] {self.overall()}")

    def overall(self) -> str:
        """Return one line about the whole launch."""
        count = Counter(job.state for job in self._jobs)
        parts = [f"{count[RunState.DONE]} of {len(self._jobs)} done", f"{count[RunState.RUNNING]} running"]
        if count[RunState.FAILED]:
            parts.append(f"{count[RunState.FAILED]} failed")
        parts.append(f"{clock(time.time() - self._began)} elapsed")
        left_s, is_whole = time_left_s(self._jobs, at_a_time=self._at_a_time)
        if left_s is not None:
            parts.append(f"{'about' if is_whole else 'at least'} {clock(left_s)} left")
        return ", ".join(parts)

    def _live_table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for job in self._jobs:
            if job.state is RunState.RUNNING:
                progress = job.progress
                step, total = progress.get("step"), progress.get("total")
                bar = ProgressBar(total=total, completed=step, width=12) if total and step is not None else Text("")
                table.add_row(
                    Text(job.experiment.label, no_wrap=True),
                    bar,
                    Text(describe(progress), no_wrap=True, overflow="ellipsis"),
                )
        return Group(table, Text(self.overall(), style="bold"))


def time_left_s(jobs: Sequence[LocalJob], *, at_a_time: int) -> tuple[float | None, bool]:
    """Estimate the remaining time of a launch in seconds.

    A waiting experiment counts with the mean duration of its kind, and the work is taken to spread evenly.

    Returns:
        The estimate, or None if no experiment has a duration yet; and whether it covers every kind that waits.
    """
    now = time.time()
    lengths: dict[str, list[float]] = {}
    left: list[float] = []
    for job in jobs:
        if job.started is None or job.kept:
            continue
        if job.state is RunState.DONE and job.ended is not None:
            lengths.setdefault(job.experiment.kind, []).append(job.ended - job.started)
        elif job.state is RunState.RUNNING and not job.attached and job.progress.get("eta_s") is not None:
            left.append(job.progress["eta_s"])
            lengths.setdefault(job.experiment.kind, []).append(now - job.started + left[-1])
    if not lengths:
        return None, False
    means = {kind: sum(values) / len(values) for kind, values in lengths.items()}
    waiting = [job.experiment.kind for job in jobs if job.state is RunState.WAITING]
    work = sum(left) + sum(means.get(kind, 0.0) for kind in waiting)
    return max([*left, work / at_a_time]), set(waiting) <= set(means)
