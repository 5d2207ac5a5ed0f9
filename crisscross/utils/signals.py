"""Shutdown signals: handlers set a flag, and the training loop checks it after every step.

This module imports only the standard library: a job installs the handlers before it imports anything else, because a
signal during the seconds of those imports must not kill it.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
INTERRUPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: not done, no error, run it again."""

PEER_LOST_EXIT_CODE = 76
"""EX_PROTOCOL of sysexits.h: another process of the same job has ended; no error in this one, run it again."""


class ShutdownSignal:
    """The flag that the handlers set."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether this process got a shutdown signal."""
        return self.signal_name is not None

    def install(self) -> None:
        """Install handlers of SIGTERM, SIGINT and SIGUSR2.

        A second SIGINT more than a second later raises KeyboardInterrupt at once. An earlier one counts as the same
        Ctrl-C: both the terminal and the parent process may send it.
        """
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def propagate(self, signal_name: str) -> None:
        """Set the flag for a signal that another process got.

        The other process is one of the same job.
        """
        self.signal_name = signal_name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT" and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if self.signal_name is None:
            self._since = time.monotonic()
        self.signal_name = signal.Signals(number).name


class Preempted(Exception):
    """Interruption, by a shutdown signal, of work that can resume.

    The message names the signal.
    """


SHUTDOWN = ShutdownSignal()
"""The flag of this process (signal handlers are per process)."""


def raise_if_preempted() -> None:
    """Raise ``Preempted`` after a shutdown signal.

    Raises:
        Preempted: if this process got a shutdown signal; the message names it.
    """
    if SHUTDOWN.requested:
        raise Preempted(SHUTDOWN.signal_name)


WORKER_GRACE_S = 30  # ours: longer than any step
"""Seconds between a SIGTERM and the exit of a loader worker."""


def ignore_in_worker() -> None:
    """Make a loader worker ignore signals for a while.

    The signals are those to its process group. The training process needs its workers to finish the current step, and
    PyTorch raises an error when a worker dies. After a SIGTERM the worker exits ``WORKER_GRACE_S`` seconds later.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE_S))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
