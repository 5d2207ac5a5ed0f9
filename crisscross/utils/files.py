"""Atomic file writes, JSON files and file locks."""

from __future__ import annotations

import errno
import functools
import json
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from filelock import BaseFileLock


# Errors of a file system that has no flock, or whose lock server does not answer.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

SOCKET_PATH_BYTES = 107
"""Longest path of a socket on Linux."""
SOCKET_NAME_BYTES = 32
"""Length of what multiprocessing appends to the folder: ``/pymp-xxxxxxxx/listener-xxxxxxxx``."""
SHORT_TEMPDIRS = ("/tmp", "/var/tmp", "/dev/shm")

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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it and run again") from error


def use_short_tempdir() -> None:
    """Put this process's temporary files where the sockets of worker processes can be.

    A socket's path has at most 107 bytes. With a longer ``$TMPDIR``, workers hang, then die.

    Raises:
        OSError: if no folder is short enough and writable.
    """
    given = tempfile.gettempdir()
    for folder in (given, *SHORT_TEMPDIRS):
        if len(os.fsencode(folder)) + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES and os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            return
    raise OSError(
        f"TMPDIR={given} is too long for the sockets of worker processes, and {', '.join(SHORT_TEMPDIRS)} cannot be"
        " written: set TMPDIR to a folder of at most"
        f" {SOCKET_PATH_BYTES - SOCKET_NAME_BYTES} characters, or execution.num_workers=0"
    )


def file_lock(path: str | os.PathLike[str], *, timeout_s: float = -1) -> BaseFileLock:
    """Return a file lock.

    The operating system releases it when its process dies. On a file system without such locks, acquiring it raises
    an ``OSError`` with the remedy: a file that merely exists would not keep two processes apart.

    Args:
        path: the lock's file; created if missing.
        timeout_s: seconds after which acquiring raises ``TimeoutError``; below 0 = never.
    """
    return _lock_class()(path, timeout=timeout_s, fallback_to_soft=False)


@functools.cache
def _lock_class() -> type[BaseFileLock]:
    # Imported here: it imports asyncio, a quarter of a second, and most commands take no lock.
    from filelock import FileLock

    class KernelLock(FileLock):
        def _acquire(self) -> None:
            try:
                super()._acquire()
            except OSError as error:
                if error.errno in NO_LOCKS:
                    raise OSError(_no_locks(Path(self.lock_file), error)) from error
                raise

    return KernelLock


def _no_locks(path: Path, error: OSError) -> str:
    """Return the message about a file system without locks."""
    import psutil  # here: only this message needs it

    folder = path.resolve().parent
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    where = f" (mounted at {mount.mountpoint}, type {mount.fstype})" if mount else ""
    return (
        f"{folder}{where} has no file locks ({os.strerror(error.errno or 0)}), and without them two processes could"
        " train one run: have it mounted with locks (Lustre: -o flock), or use a folder on another file system"
        " (runs_root=DIR, data.root=DIR, tracking.uri=...)"
    )
