"""Sync to MLflow in a child process, while a job runs.

It is not a thread: the import of MLflow would hold the interpreter for seconds in the middle of training, and loader
processes forked meanwhile would inherit its locks. The process ends by itself after the job, however that ends.
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
from crisscross.tracking.address import absolute
from crisscross.tracking.sync import sync_runs, unsynced_reason

logger = logging.getLogger(__name__)
LEAVING_SECONDS = 30.0
"""Longest wait, before the last sync, for jobs to exit after their launcher died. ours: the time of a checkpoint."""


class SyncRequest(TypedDict):
    """The run directories, the store and the interval of a sync process."""

    runs: list[str]
    uri: str
    experiment: str
    interval_s: float


class SyncProcess:
    """Child process that syncs runs at an interval and at the end.

    Nothing here raises into the job or makes it wait, except ``close``, up to its time limit.

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
            runs: run directories to sync.
            uri: MLflow's tracking URI.
            experiment: name of the MLflow experiment.
            interval_s: time between two syncs, in seconds.
            timeout_s: time limit of the last sync, at the end of the ``with`` block.

        Raises:
            ValueError: if MLflow does not accept the URI.
        """
        absolute(uri)
        self._runs = list(runs)
        self._request: SyncRequest = {
            "runs": [str(run.path) for run in self._runs],
            "uri": uri,
            "experiment": experiment,
            "interval_s": interval_s,
        }
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SyncProcess:
        """Start the process."""
        # The request goes through the pipe: a URI may hold a password, and command lines are public.
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
                logger.warning("no sync to MLflow during this run (%s): its run directory keeps everything", error)
                return self
            pipe = _pipe_to(self._process)
            pipe.write(json.dumps(self._request).encode() + b"\n")
            pipe.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sync once more, unless it is closed already."""
        if self._process is not None:
            self.close(self._timeout_s)

    def close(self, timeout_s: float) -> list[str]:
        """Sync once more and end the process.

        Args:
            timeout_s: time limit, in seconds.

        Returns:
            One line a run that MLflow does not have completely; also logged as warnings.
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
        return self._unsynced()

    def _unsynced(self) -> list[str]:
        lines = []
        for run in self._runs:
            try:
                what = unsynced_reason(
                    run, uri=self._request["uri"], experiment=self._request["experiment"], stale_s=0.0
                )
            except (OSError, ValueError) as error:  # a damaged or vanished run directory is no reason to fail here
                what = str(error)
            if what:
                lines.append(f"{run.path.name}: {what}; it waits in {run.path} for the next sync")
                logger.warning(lines[-1])
        return lines


def _pipe_to(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return the standard input of the process."""
    assert process.stdin is not None  # it was started with a pipe
    return process.stdin


def serve() -> None:
    """Read a request from standard input and sync.

    It ends when the job closes the pipe.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the job; this process exits after it
    request: SyncRequest = json.loads(sys.stdin.buffer.readline())
    os.nice(5)
    logging.getLogger("crisscross.tracking").setLevel(logging.ERROR)  # printed below, and only when it changes
    runs = [RunDirectory.open(path) for path in request["runs"]]
    printed = ""
    last = False
    while True:
        started = time.monotonic()
        # In the last sync, a run whose state is running and whose lock is free was killed.
        stale_s = 0.0 if last else STALE_SECONDS
        # Not only unsynced runs: those that have nothing new but their progress too.
        report = sync_runs(runs, request["uri"], request["experiment"], skip_synced=False, stale_s=stale_s)
        if report.reason and not printed:
            print(f"{report.reason} (training continues)", file=sys.stderr, flush=True)
        if printed and not report.reason:
            print("MLflow is back and up to date", file=sys.stderr, flush=True)
        printed = report.reason
        if last:
            return
        wait_s = max(0.0, request["interval_s"] - (time.monotonic() - started))
        last = bool(select.select([sys.stdin.buffer], [], [], wait_s)[0])
        if last and sys.stdin.buffer.readline() != b"close\n":  # the end of the pipe: the launcher has died
            _wait_for_jobs(runs, timeout_s=LEAVING_SECONDS)


def _wait_for_jobs(runs: Sequence[RunDirectory], *, timeout_s: float) -> None:
    """Wait until no process works on these runs.

    Jobs whose launcher has died write a checkpoint and exit.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(run.is_running for run in runs):
        time.sleep(0.5)


if __name__ == "__main__":
    serve()
