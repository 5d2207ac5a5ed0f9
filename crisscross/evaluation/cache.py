"""A cache on disk, so that interrupted evaluations keep slow values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import raise_if_preempted


@dataclass(frozen=True)
class JsonCache:
    """Named values in a JSON file.

    Attributes:
        path: a file in the run directory, whose identity covers all inputs of the values; None = no file.
    """

    path: Path | None = None

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a value, computing it if the file lacks it.

        Raises:
            Preempted: if a signal asked the job to stop, instead of computing.
        """
        known = (self.path and read_json(self.path)) or {}
        if name not in known:
            raise_if_preempted()
            known[name] = compute()
            if self.path:
                self.path.parent.mkdir(exist_ok=True)
                write_json(self.path, known)
        return known[name]
