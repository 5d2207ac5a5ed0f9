"""Output to terminals that lack some characters."""

from __future__ import annotations

import contextlib
import io
import sys


def print_what_can_be_printed() -> None:
    """Replace characters that the terminal's encoding lacks with ``?``.

    Otherwise a name or a ± raises ``UnicodeEncodeError`` on a Latin-1 or ASCII terminal. Call it first in a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            with contextlib.suppress(OSError):  # a stream whose file was exchanged below it
                stream.reconfigure(errors="replace")
