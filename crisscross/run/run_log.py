"""A run's log: the format of its lines, and its warnings for the terminal of the launch."""

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
    """Return a handler that writes log lines to a file or stderr.

    Warnings of this project are marked.
    """
    handler = logging.StreamHandler() if path is None else logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


def warnings_in(path: Path) -> list[str]:
    """Return the warnings in a run's log, each once, in order.

    The log may be missing.
    """
    with contextlib.suppress(OSError), path.open("rb") as log:
        return [*dict.fromkeys(_warnings_of(log.read()))]
    return []


class Warnings(logging.Handler):
    """Handler that prints the warnings of this project on stderr.

    Each warning is printed once, in one line. rich keeps stderr apart from a progress bar while it shows one.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning that is logged in this process."""
        if _is_warning(record):
            self.show(record.getMessage())

    def show(self, text: str) -> None:
        """Print a warning, unless it was printed."""
        line = " ".join(text.split())
        if line not in self._shown:
            self._shown.add(line)
            print(f"{_MARK}{line}", file=sys.stderr, flush=True)


class LogReader:
    """Reader that prints the warnings in a run's log.

    Other processes, the ranks of the run, add them to the log.
    """

    def __init__(self, path: Path, warnings: Warnings) -> None:
        self._path, self._warnings = path, warnings
        self._offset = path.stat().st_size if path.is_file() else 0

    def poll(self) -> None:
        """Print the warnings since the last call; an incomplete line waits."""
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
    """Return whether a record is a warning of this project.

    Warnings of libraries do not count.
    """
    return record.levelno == logging.WARNING and record.name.partition(".")[0] in _OURS


def _warnings_of(content: bytes) -> Iterator[str]:
    for line in content.decode(errors="replace").splitlines():
        text = line[len(_TIME) :]
        if text.startswith(_MARK):
            yield text.removeprefix(_MARK)
