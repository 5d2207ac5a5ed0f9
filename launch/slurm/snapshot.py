"""A copy of the code for jobs that start after the working tree has changed.

runs/code/<digest>/               the packages and pyproject.toml; one copy for all launches of the same code
runs/code/<digest>/snapshot.json  digest, commit, whether the code differs from the commit; written last
runs/code/<digest>/code.diff      the difference, for `git apply` on the commit
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.utils.files import file_lock, fsync_directory, read_json, write_json
from crisscross.utils.git import CODE, CODE_ROOT, code_diff, git

logger = logging.getLogger(__name__)
MAX_BYTES = 64 * 2**20  # ours: the code has less than 1 MiB, more is data
_ATTEMPTS = 5  # ours: to read the code while no file of it is saved
_DIGEST_DIGITS = 16
_Files = Mapping[str, tuple[bool, bytes]]  # path relative to the source -> is executable, content


@dataclass(frozen=True)
class Snapshot:
    """A read-only copy of the code.

    Attributes:
        path: its folder, absolute.
        digest: 16 hexadecimal digits over paths, executable bits and contents.
        commit: the commit of the working tree; None without one.
        dirty: whether the code differs from the commit; ``code.diff`` in the folder has the difference.
    """

    path: Path
    digest: str
    commit: str | None
    dirty: bool


def take_snapshot(runs_root: Path, *, source: Path = CODE_ROOT) -> Snapshot:
    """Copy the project's code into ``runs_root/code/``, or return the existing copy.

    In a git checkout the code is every tracked and every untracked file that git does not ignore, as in the working
    tree; elsewhere every file that is neither hidden nor compiled. The same code has the same folder, with the commit
    of its first snapshot.

    Args:
        runs_root: folder of the run directories.
        source: folder of the packages.

    Raises:
        ValueError: if the code cannot be copied as it is; names the file and the remedy.
        OSError: if a file cannot be read, or the copy cannot be written.
    """
    source = source.resolve()
    for _ in range(_ATTEMPTS):
        files = _read(source)
        path = runs_root.resolve() / "code" / _digest(files)
        about = _find(path, files)
        if about is None:
            commit, diff = _origin(source)
            if files != _read(source):  # a file was saved meanwhile: the diff may be that of other code
                continue
            about = _write(path, files, commit=commit, diff=diff)
        return Snapshot(path, path.name, about["commit"], about["dirty"])
    raise ValueError(f"{source}: the code changes while it is copied: launch again when nothing writes there")


def snapshot_environment(snapshot: Snapshot) -> dict[str, str]:
    """Return environment variables with which Python and its children import a snapshot.

    Raises:
        ValueError: if PYTHONPATH cannot contain its path.
    """
    if os.pathsep in str(snapshot.path):
        raise ValueError(
            f"runs_root={snapshot.path.parents[1]}: {os.pathsep!r} ends a path in PYTHONPATH: choose one without"
        )
    # PYTHONPATH precedes the installed packages; PYTHONSAFEPATH leaves out the working directory, which precedes both.
    return {"PYTHONPATH": str(snapshot.path), "PYTHONSAFEPATH": "1"}


def _read(source: Path) -> _Files:
    """Read the code into memory."""
    listed = _git_files(source) or _walk(source)  # git ignores an installation, and a snapshot below runs/
    names = {name for name in listed if not name.endswith(".md") and os.path.lexists(source / name)}
    if not names:
        raise ValueError(f"{source} holds none of {', '.join(CODE)}: there is no code to keep for the jobs")
    files: dict[str, tuple[bool, bytes]] = {}
    num_bytes, largest = 0, (0, Path())
    for path in (source / name for name in sorted(names)):
        if path.is_symlink():
            _check_link(path, source, names)
        try:
            status = path.stat()
            num_bytes, largest = num_bytes + status.st_size, max(largest, (status.st_size, path))
            if num_bytes > MAX_BYTES:
                raise ValueError(
                    f"{source}: more than {MAX_BYTES >> 20} MiB of code, {largest[1]} alone has"
                    f" {largest[0] / 2**20:.0f}: data belongs elsewhere, or into .gitignore"
                )
            files[path.relative_to(source).as_posix()] = (bool(status.st_mode & 0o100), path.read_bytes())
        except FileNotFoundError:  # deleted since it was listed
            continue
        except IsADirectoryError:
            raise ValueError(
                f"{path} is a git repository of its own, which a snapshot of the code leaves out: move it elsewhere"
            ) from None
        except OSError as error:
            raise OSError(f"{path}: {error.strerror}: make it readable, or tell git to ignore it") from error
    return files


def _git_files(source: Path) -> list[str]:
    """Return the files that git tracks or would add.

    Deleted files are among them. Outside a checkout there are none.
    """
    try:
        listing = git(source, "ls-files", "-co", "--exclude-standard", "-z", "--", *CODE)
    except (OSError, subprocess.SubprocessError) as error:
        if not any((folder / ".git").exists() for folder in (source, *source.parents)):
            return []
        raise ValueError(f"{source}: {_reason(error)}: without git the files to leave out are unknown") from error
    return os.fsdecode(listing).split("\0")[:-1]


def _walk(source: Path) -> list[str]:
    """Return files and links that are neither hidden nor compiled."""
    found = (path for name in CODE for path in [source / name, *(source / name).rglob("*")])
    names = [path.relative_to(source) for path in found if path.is_symlink() or path.is_file()]  # no pipes, no sockets
    return [
        name.as_posix() for name in names if not any(part[0] == "." or part == "__pycache__" for part in name.parts)
    ]


def _check_link(link: Path, source: Path, names: Collection[str]) -> None:
    """Check that a link leads to another file of the code.

    The content of that file replaces the link.

    Raises:
        ValueError: if it does not.
    """
    target = Path(os.path.realpath(link))
    if not (target.is_relative_to(source) and target.relative_to(source).as_posix() in names and target.is_file()):
        raise ValueError(f"{link} is a link to {target}, which is no file of the code: put a file in its place")


def _reason(error: Exception) -> str:
    lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").split("\n")
    return f"git reports {lines[0]!r}" if lines[0] else f"git could not be called ({error})"


def _digest(files: _Files) -> str:
    digest = hashlib.sha256()
    for name, (executable, content) in sorted(files.items()):
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(name), executable, len(content)))
        digest.update(content)
    return digest.hexdigest()[:_DIGEST_DIGITS]


def _origin(source: Path) -> tuple[str | None, bytes]:
    """Return the commit of the code and the diff to it."""
    about = read_json(source / "snapshot.json")
    if about is not None:  # a launch from inside a job
        return about["commit"], (source / "code.diff").read_bytes() if about["dirty"] else b""
    if not _git_files(source):
        return None, b""
    try:
        commit = git(source, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except subprocess.CalledProcessError:  # no commit yet
        return None, b""
    try:
        return commit, code_diff(source, commit)
    except (OSError, subprocess.SubprocessError) as error:
        raise OSError(f"{source}: {_reason(error)}: commit what you want to launch, or repair the checkout") from error


def _find(path: Path, files: _Files) -> dict[str, Any] | None:
    """Return the ``snapshot.json`` of a snapshot if it is complete.

    Clusters delete old files one by one.
    """
    try:
        about: dict[str, Any] | None = read_json(path / "snapshot.json")
        if about is None or (about["dirty"] and not (path / "code.diff").is_file()):
            return None
        is_whole = all((path / name).read_bytes() == content for name, (_, content) in files.items())
    except (OSError, ValueError):
        return None
    return about if is_whole else None


def _write(path: Path, files: _Files, *, commit: str | None, diff: bytes) -> dict[str, Any]:
    """Write a snapshot in one rename and return its ``snapshot.json``.

    If another launch was faster, its snapshot stays.
    """
    about = {"snapshot": path.name, "commit": commit, "dirty": bool(diff), "created": time.time()}
    changes = {"code.diff": (False, diff)} if diff else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file_lock(path.parent / ".lock"):
            return _find(path, files) or _write_alone(path, {**files, **changes}, about)
    except OSError as error:
        raise OSError(
            f"runs_root={path.parents[1]}: no snapshot of the code could be written ({error.strerror}):"
            " choose a folder you can write, with space left"
        ) from error


def _write_alone(path: Path, files: _Files, about: dict[str, Any]) -> dict[str, Any]:
    leftovers = temporary, damaged = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.damaged")
    _remove(*leftovers)  # of a launch that was killed
    try:
        temporary.mkdir(mode=0o700)
        for name, (is_executable, content) in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
            (temporary / name).chmod(0o555 if is_executable else 0o444)  # jobs share it: not for editing
        write_json(temporary / "snapshot.json", about)
        (temporary / "snapshot.json").chmod(0o444)
        if path.exists():
            logger.warning("%s was incomplete or edited: a new copy replaces it", path)
            path.rename(damaged)
        temporary.rename(path)
        fsync_directory(path.parent)
    finally:
        _remove(*leftovers)
    return about


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
