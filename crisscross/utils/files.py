"""Writing files so that a crash leaves either the old content or the new, never a mixture."""

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


# The errors of a disk, or of one's share of it, that has no room left.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside ``path``, fsync, rename over it, fsync the folder.

    Args:
        path: where the file shall stand; its folder must exist.
        write: called with the open binary file.

    Raises:
        OSError: whatever the disk says (full, read-only, gone). The temporary file is removed, ``path`` untouched.
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
    """Make a rename inside ``path`` durable."""
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
    """Read a JSON file, or return None where there is none.

    Raises:
        ValueError: when the file is not JSON, naming it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and run again") from error


def file_lock(path: str | os.PathLike[str], *, timeout_s: float = -1) -> BaseFileLock:
    """Return a lock that the operating system lets go of when its holder dies.

    Args:
        path: the lock's file; made if need be.
        timeout_s: how long taking it may wait; below 0 = for ever. Then ``TimeoutError`` is raised.
    """
    from filelock import FileLock

    return FileLock(path, timeout=timeout_s)
