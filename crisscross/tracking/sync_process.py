"""Delivery to MLflow beside a running job, in a process of its own.

Not a thread: importing MLflow would hold the interpreter for seconds in the middle of training, and loader
processes forked meanwhile would inherit its locks. The process ends by itself when the job does, however that
ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TypedDict

from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import STALE_SECONDS
from crisscross.tracking.client import absolute

logger = logging.getLogger(__name__)
LEAVING_SECONDS = 30.0
"""How long the last delivery waits for jobs to leave whose launcher has died (chosen by us: a checkpoint's time)."""


class Order(TypedDict):
    """What the process is to do: whose folders are delivered, where to, and how often."""

    runs: list[str]
    uri: str
    experiment: str
    interval_s: float


class SyncProcess:
    """Delivers runs again and again, and once more at the end.

    Nothing here raises into the job or makes it wait, except ``close``, for as long as it is told.

        with SyncProcess([run], uri=..., experiment=...):
            experiment.run(run)
    """

    def __init__(
        self,
        runs: Sequence[RunDirectory],
        *,
        uri: str,
        experiment: str,
        interval_s: float = 30.0,
        timeout_s: float = 30.0,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            runs: run directories to deliver.
            uri: MLflow's tracking URI.
            experiment: name of the MLflow experiment.
            interval_s: time between two deliveries.
            timeout_s: how long the last delivery may take at the end of the ``with`` block.

        Raises:
            ValueError: when the URI is none that MLflow takes.
        """
        absolute(uri)
        self._runs = list(runs)
        self._order: Order = {
            "runs": [str(run.path) for run in self._runs],
            "uri": uri,
            "experiment": experiment,
            "interval_s": interval_s,
        }
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SyncProcess:
        """Start the process."""
        # The order goes through the pipe: a URI may hold a password, and command lines are public.
        with contextlib.suppress(BrokenPipeError):
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "crisscross.tracking.sync_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C is for the job; this one ends after it
                )
            except OSError as error:
                logger.warning("no delivery to MLflow during this run (%s): its run directory keeps everything", error)
                return self
            pipe = _pipe_to(self._process)
            pipe.write(json.dumps(self._order).encode() + b"\n")
            pipe.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Deliver once more, unless it has been closed already."""
        if self._process is not None:
            self.close(self._timeout_s)

    def close(self, timeout_s: float) -> list[str]:
        """Make a last attempt and end the process.

        Args:
            timeout_s: how long that may take.

        Returns:
            One line for each run of which MLflow does not have everything; also logged as warnings.
        """
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                # A word, not only the end of the pipe: processes forked by the job hold its other end open.
                pipe = _pipe_to(self._process)
                pipe.write(b"close\n")
                pipe.close()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        return self._pending()

    def _pending(self) -> list[str]:
        from crisscross.tracking.sync import pending

        lines = []
        for run in self._runs:
            try:
                what = pending(run, uri=self._order["uri"], experiment=self._order["experiment"], stale_s=0.0)
            except (OSError, ValueError) as error:  # a damaged or vanished run directory is no reason to fail here
                what = str(error)
            if what:
                lines.append(f"{run.path.name}: {what}; it waits in {run.path} for the next delivery")
                logger.warning(lines[-1])
        return lines


def _pipe_to(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return what the process reads."""
    assert process.stdin is not None  # it was started with a pipe
    return process.stdin


def serve() -> None:
    """Be the courier: read the order from standard input, deliver until the job says so or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the job; this process goes when the job has gone
    order: Order = json.loads(sys.stdin.buffer.readline())
    os.nice(5)
    from crisscross.tracking.sync import deliver_all

    logging.getLogger("crisscross.tracking").setLevel(logging.ERROR)  # said below, and only when it changes
    runs = [RunDirectory.open(path) for path in order["runs"]]
    told = ""
    last = False
    while True:
        started = time.monotonic()
        # The last word is for ever: whoever says that it runs, and holds no lock, has been killed.
        stale_s = 0.0 if last else STALE_SECONDS
        failures = deliver_all(runs, uri=order["uri"], experiment=order["experiment"], stale_s=stale_s)
        reason = failures[0].reason if failures else ""
        if reason and not told:
            print(f"{reason} (training goes on)", file=sys.stderr, flush=True)
        if told and not reason:
            print("MLflow is back and up to date", file=sys.stderr, flush=True)
        told = reason
        if last:
            return
        wait_s = max(0.0, order["interval_s"] - (time.monotonic() - started))
        last = bool(select.select([sys.stdin.buffer], [], [], wait_s)[0])
        if last and sys.stdin.buffer.readline() != b"close\n":  # the end of the pipe: the launcher has died
            _wait_until_left(runs, timeout_s=LEAVING_SECONDS)


def _wait_until_left(runs: Sequence[RunDirectory], *, timeout_s: float) -> None:
    """Wait until no process works on these runs; those whose launcher has died write a checkpoint and leave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(run.is_running for run in runs):
        time.sleep(0.5)


if __name__ == "__main__":
    serve()
