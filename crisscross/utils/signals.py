"""Signals that ask a job to leave. Handlers only set a flag; the loop acts on it at a step boundary.

Only the standard library is imported here: a job installs these handlers on its first line, because a signal that
arrives during the seconds that other imports take must not kill it.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
INTERRUPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: not done, nothing wrong, run it again."""

PEER_LOST_EXIT_CODE = 76
"""EX_PROTOCOL of sysexits.h: another process of the same job is gone. Nothing wrong with this one, run it again."""


class ShutdownSignal:
    """The flag that the handlers set."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether some signal has asked this process to leave."""
        return self.signal_name is not None

    def install(self) -> None:
        """Catch SIGTERM, SIGINT and SIGUSR2. A second SIGINT, a second or more later, raises KeyboardInterrupt at once.

        Sooner it is taken for the same one: a terminal and whoever started this process may both pass it on.
        """
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def note(self, signal_name: str) -> None:
        """Take note of a signal that another process of the same job has got."""
        self.signal_name = signal_name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT" and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if self.signal_name is None:
            self._since = time.monotonic()
        self.signal_name = signal.Signals(number).name


class Preempted(Exception):
    """Raised where a job can leave in good order, because a signal asked it to; the message is the signal's name."""


INTERRUPTION = ShutdownSignal()
"""Signal handlers belong to the process, so there is one flag a process."""


def raise_if_preempted() -> None:
    """Stop here when a signal asked the job to leave.

    Raises:
        Interrupted: naming the signal.
    """
    if INTERRUPTION.requested:
        raise Preempted(INTERRUPTION.signal_name)


WORKER_GRACE_S = 30
"""How long a loader worker outlives a SIGTERM (chosen by us): longer than any step."""


def ignore_in_worker() -> None:
    """In a forked loader worker: do not die of what tells the whole process group to leave.

    The training process still needs its workers to finish the step that it is in, and a worker that dies makes PyTorch
    raise an error in the middle of whatever it does. A worker that is told to go and is not wanted any more goes a
    little later by itself.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE_S))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
