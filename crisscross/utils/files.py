"""Atomic file writes, JSON files and file locks."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from filelock import BaseFileLock


# Errors of a full disk or an exhausted quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically.

    It writes a temporary file, calls fsync on it, renames it to ``path``, and calls fsync on the folder. After a crash,
    ``path`` has either the old or the new content.

    Args:
        path: path of the file; its folder must exist.
        write: called with the open binary file.

    Raises:
        OSError: if the disk is full, read-only or gone. The temporary file is removed, ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Flush a folder to disk.

    A rename in it then survives a crash.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; return None if it does not exist.

    Raises:
        ValueError: if the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and run again") from error


def file_lock(path: str | os.PathLike[str], *, timeout_s: float = -1) -> BaseFileLock:
    """Return a file lock.

    The operating system releases it when its process dies.

    Args:
        path: the lock's file; created if missing.
        timeout_s: seconds after which acquiring raises ``TimeoutError``; below 0 = never.
    """
    # Imported here: it imports asyncio, a quarter of a second, and most commands take no lock.
    from filelock import FileLock

    return FileLock(path, timeout=timeout_s)
