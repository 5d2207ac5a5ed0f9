"""What a terminal shows while an experiment runs: its progress and its warnings."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crisscross.run.run_dir import RunDirectory
from crisscross.run.run_log import Warnings, handler_for
from crisscross.utils.signals import SHUTDOWN
from launch.console import describe, print_line
from launch.job.run import is_first_rank
from launch.local.live_display import HEARTBEAT_S


@contextlib.contextmanager
def showing_progress(run: RunDirectory, console: Console) -> Iterator[None]:
    """Show the progress of a run during the block.

    It is a bar on a terminal, and plain lines anywhere else.
    """
    began = time.time()

    def progress() -> Mapping[str, Any]:
        found = run.progress or {}
        return found if found.get("time", 0) >= began else {}

    def bar() -> Table:
        found = progress()
        grid = Table.grid(padding=(0, 2))
        line = "stopping at the next step" if SHUTDOWN.requested else describe(found)
        text = Text(line, no_wrap=True, overflow="ellipsis")
        grid.add_row(ProgressBar(total=found.get("total"), completed=found.get("step") or 0, width=30), text)
        return grid

    if console.is_terminal:
        with Live(console=console, get_renderable=bar, refresh_per_second=4, transient=True):
            yield
        return
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(HEARTBEAT_S):
            print_line(console, describe(progress()))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[Warnings]:
    """Send the log records of the block to a file.

    Warnings of rank 0 also go to the terminal.
    """
    root = logging.getLogger()
    handler, warnings = handler_for(path), Warnings()
    old_handlers, old_level = root.handlers[:], root.level
    root.handlers[:] = [handler, warnings] if is_first_rank() else [handler]
    root.setLevel(logging.INFO)
    try:
        yield warnings
    finally:
        root.handlers[:] = old_handlers
        root.setLevel(old_level)
        handler.close()
