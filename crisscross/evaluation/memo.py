"""Numbers that take long to compute, kept as they come: an interrupted evaluation does not compute them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crisscross.evaluation.features import Interrupted
from crisscross.files import read_json, write_json
from crisscross.training.interruption import INTERRUPTION


@dataclass(frozen=True)
class Memo:
    """A file of named numbers.

    Attributes:
        path: a JSON file in the run directory, whose identity covers all that the numbers depend on.
    """

    path: Path

    def number(self, name: str, compute: Callable[[], float]) -> float:
        """Return a number, computing it when it is not known yet.

        Raises:
            Interrupted: instead of computing, when a signal asked the job to leave.
        """
        known = read_json(self.path) or {}
        if name not in known:
            if INTERRUPTION.requested:
                raise Interrupted(INTERRUPTION.signal_name)
            known[name] = compute()
            self.path.parent.mkdir(exist_ok=True)
            write_json(self.path, known)
        return known[name]
