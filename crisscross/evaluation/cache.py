"""What takes long to compute, kept as it comes: an interrupted evaluation does not compute it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.utils.files import read_json, write_json
from crisscross.utils.signals import raise_if_preempted


@dataclass(frozen=True)
class JsonCache:
    """A file of named values.

    Attributes:
        path: a JSON file in the run directory, whose identity covers all that the values depend on; None = no file.
    """

    path: Path | None = None

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a value, computing it when it is not known yet.

        Raises:
            Interrupted: instead of computing, when a signal asked the job to leave.
        """
        known = (self.path and read_json(self.path)) or {}
        if name not in known:
            raise_if_preempted()
            known[name] = compute()
            if self.path:
                self.path.parent.mkdir(exist_ok=True)
                write_json(self.path, known)
        return known[name]
