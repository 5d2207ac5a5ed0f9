"""Locks between processes, by files.

filelock brings asyncio along, a tenth of a second that a dry run and a status do without: it is imported by whoever
takes a lock.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def file_lock(path: str | os.PathLike[str], *, timeout_s: float = -1) -> BaseFileLock:
    """Return a lock that the operating system lets go of when its holder dies.

    Args:
        path: the lock's file; made if need be.
        timeout_s: how long taking it may wait; below 0 = for ever. Then ``TimeoutError`` is raised.
    """
    from filelock import FileLock

    return FileLock(path, timeout=timeout_s)
