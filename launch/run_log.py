"""A run's log: what its lines look like, and the warnings in it, which its launch shows as well."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

_OURS = ("crisscross", "launch", "__main__")
_MARK = "warning: "
_TIME = "HH:MM:SS "


def handler_for(path: Path | None = None) -> logging.Handler:
    """Return what writes log lines to a file, or to stderr; a warning of ours is marked as one."""
    handler = logging.StreamHandler() if path is None else logging.FileHandler(path)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


def warnings_in(path: Path) -> list[str]:
    """Return the warnings that a run's log holds, each once, in their order; none where there is no log."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        return [*dict.fromkeys(_warnings_of(log.read()))]
    return []


class Warnings(logging.Handler):
    """Shows warnings of ours on the terminal, one line each, each once.

    On stderr, which rich keeps apart from a progress bar as long as it shows one.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one that is logged in this process."""
        if _is_warning(record):
            self.show(record.getMessage())

    def show(self, text: str) -> None:
        """Show one, unless it has been."""
        line = " ".join(text.split())
        if line not in self._shown:
            self._shown.add(line)
            print(f"{_MARK}{line}", file=sys.stderr, flush=True)


class LogReader:
    """Shows the warnings that other processes, the ranks of a run, write to its log from now on."""

    def __init__(self, path: Path, warnings: Warnings) -> None:
        self._path, self._warnings = path, warnings
        self._offset = path.stat().st_size if path.is_file() else 0

    def look(self) -> None:
        """Show what has come since the last look; a line that is not complete yet has to wait."""
        with contextlib.suppress(OSError), self._path.open("rb") as log:
            log.seek(self._offset)
            complete = log.read().rpartition(b"\n")[0]
            self._offset += len(complete) + 1 if complete else 0
            for text in _warnings_of(complete):
                self._warnings.show(text)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """Mark warnings."""
        if _is_warning(record):
            record.message = f"{_MARK}{' '.join(record.message.split())}"
        return super().formatMessage(record)


def _is_warning(record: logging.LogRecord) -> bool:
    """Whether a record is a warning of ours; what libraries warn of is for the log alone."""
    return record.levelno == logging.WARNING and record.name.partition(".")[0] in _OURS


def _warnings_of(content: bytes) -> Iterator[str]:
    for line in content.decode(errors="replace").splitlines():
        text = line[len(_TIME) :]
        if text.startswith(_MARK):
            yield text.removeprefix(_MARK)
