"""The code as it is at this moment, kept for jobs that start later, when the working tree has moved on.

runs/code/<digest>/               the packages and pyproject.toml; one copy for all that is launched from the same code
runs/code/<digest>/snapshot.json  digest, commit, whether the code differs from it; written last
runs/code/<digest>/code.diff      where it does: what `git apply` on the commit needs to give this code
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.utils.files import file_lock, fsync_directory, read_json, write_json
from crisscross.utils.git import CODE, CODE_ROOT, code_diff, git

logger = logging.getLogger(__name__)
MAX_BYTES = 64 * 2**20
"""More than this is data in the wrong place (chosen by us; the code has less than 1 MiB)."""

_ATTEMPTS = 5  # at a moment in which nobody saves a file; chosen by us
_DIGEST_DIGITS = 16
_Files = Mapping[str, tuple[bool, bytes]]  # by path relative to the source: executable?, content
_Lister = Callable[[Path, Iterable[str]], list[str]]


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code that does not change any more.

    Attributes:
        path: its folder, absolute.
        digest: 16 hexadecimal digits over paths, executable bits and contents.
        commit: the commit it was taken on, or None where there was none.
        dirty: whether it differs from that commit; ``code.diff`` in it says how.
    """

    path: Path
    digest: str
    commit: str | None
    dirty: bool


def take_snapshot(runs_root: Path, *, source: Path = CODE_ROOT) -> Snapshot:
    """Copy the project's code into ``runs_root/code/``, or find it where it is there already.

    In a git checkout that is what the working tree holds, committed or not, less what git ignores; elsewhere all but
    hidden and compiled files. The same code has the same folder, with the commit that it was first taken on.

    Args:
        runs_root: folder of the run directories.
        source: folder of the packages.

    Raises:
        ValueError: when the code cannot be copied as it is, naming the file and the remedy.
        OSError: when a file cannot be read or the copy cannot be written.
    """
    source = source.resolve()
    for _ in range(_ATTEMPTS):
        files = _read(source)
        digest = _digest(files)
        path = runs_root.resolve() / "code" / digest
        about = _find(path, files)
        if about is None:
            commit, diff = _origin(source)
            if files != _read(source):  # what was read would be no moment's code, or not what the diff says
                continue
            about = _write(path, files, commit=commit, diff=diff)
        return Snapshot(path, digest, about["commit"], about["dirty"])
    raise ValueError(f"{source}: the code changes while it is copied: launch again when nothing writes there")


def snapshot_environment(snapshot: Snapshot) -> dict[str, str]:
    """Return the environment variables with which every Python, and every child of it, imports a snapshot.

    Raises:
        ValueError: when its path cannot stand in PYTHONPATH.
    """
    if os.pathsep in str(snapshot.path):
        raise ValueError(
            f"runs_root={snapshot.path.parents[1]}: {os.pathsep!r} ends a path in PYTHONPATH: choose one without"
        )
    # Before the installed packages comes PYTHONPATH; before that the working directory, unless it is kept out.
    return {"PYTHONPATH": str(snapshot.path), "PYTHONSAFEPATH": "1"}


def _read(source: Path) -> _Files:
    """Read the code into memory, links followed; what was deleted since git last looked is left out."""
    lister: _Lister = _list_by_git
    names = lister(source, CODE)
    if not names:  # no checkout, or one that ignores this folder: an installation, or a snapshot under runs/
        lister = _list_by_walking
        names = lister(source, CODE)
    files: dict[str, tuple[bool, bytes]] = {}
    num_bytes = 0
    for name, path in _follow_links(source, names, lister):
        if name.endswith(".md"):  # no result depends on documents
            continue
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                num_bytes += status.st_size
                if num_bytes > MAX_BYTES:
                    raise ValueError(_too_much(source, names))
                files[name] = (bool(status.st_mode & 0o100), file.read())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except IsADirectoryError:
            raise ValueError(
                f"{path} is a git repository of its own, which a snapshot of the code leaves out: move it elsewhere"
            ) from None
        except OSError as error:
            raise OSError(f"{path}: {error.strerror}: make it readable, or tell git to ignore it") from error
    if not files:
        raise ValueError(f"{source} holds none of {', '.join(CODE)}: there is no code to keep for the jobs")
    return files


def _list_by_git(source: Path, paths: Iterable[str]) -> list[str]:
    """List what git knows or would add, deleted files included; nothing where there is no checkout."""
    try:
        listing = git(source, "--literal-pathspecs", "ls-files", "-co", "--exclude-standard", "-z", "--", *paths)
    except (OSError, subprocess.SubprocessError) as error:
        if not any((folder / ".git").exists() for folder in (source, *source.parents)):
            return []
        raise ValueError(
            f"{source}: {_reason(error)}: without git nobody knows which files are to be left out"
        ) from error
    return sorted(set(os.fsdecode(listing).split("\0")) - {""})


def _list_by_walking(source: Path, paths: Iterable[str]) -> list[str]:
    found = []
    for path in (source / each for each in paths):
        if path.is_symlink() or path.is_file():
            found.append(path)
        for folder, folders, names in os.walk(path) if not path.is_symlink() else ():
            folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            kept = [name for name in names if name[0] != "." and not name.endswith(".pyc")]
            inside = (Path(folder) / name for name in (*links, *kept))
            found += [each for each in inside if each.is_symlink() or each.is_file()]  # no pipes, no sockets
    return sorted(each.relative_to(source).as_posix() for each in found)


def _follow_links(source: Path, names: Iterable[str], lister: _Lister) -> Iterable[tuple[str, Path]]:
    """Yield names, and the files that stand behind them.

    Raises:
        ValueError: when a link leads nowhere, out of the source, or to what git ignores.
    """
    for name in names:
        link = source / name
        if not link.is_symlink():
            yield name, link
            continue
        target = Path(os.path.realpath(link))
        problem = ""
        if not target.exists():
            problem = "leads nowhere"
        elif not target.is_relative_to(source) or target == source:
            problem = f"leads out of the code ({target})"
        else:
            inside = target.relative_to(source).as_posix()
            behind = [each for each in lister(source, [inside]) if (source / each).exists()]
            if not behind:
                problem = f"leads to what git ignores ({target})"
            elif any((source / each).is_symlink() for each in behind):
                problem = f"leads to further links ({target})"
        if problem:
            raise ValueError(f"{link} is a link that {problem}, which a job could not follow: put a file in its place")
        for each in behind:
            yield name + each.removeprefix(inside), source / each


def _too_much(source: Path, names: Iterable[str]) -> str:
    sizes = {path: path.stat().st_size for path in (source / name for name in names) if path.is_file()}
    largest = max(sizes, key=sizes.__getitem__)
    return (
        f"{source}: more than {MAX_BYTES >> 20} MiB of code, {largest} alone has {sizes[largest] / 2**20:.0f}:"
        " data belongs elsewhere, or into .gitignore"
    )


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f"git says {lines[0]!r}" if lines else f"git could not be asked ({error})"


def _digest(files: _Files) -> str:
    digest = hashlib.sha256()
    for name, (executable, content) in sorted(files.items()):
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(name), executable, len(content)))
        digest.update(content)
    return digest.hexdigest()[:_DIGEST_DIGITS]


def _origin(source: Path) -> tuple[str | None, bytes]:
    """Return the commit that the code is on and what it adds to it."""
    about = read_json(source / "snapshot.json")
    if about is not None:  # a job launches further ones
        return about["commit"], (source / "code.diff").read_bytes() if about["dirty"] else b""
    if not _list_by_git(source, CODE):
        return None, b""
    try:
        commit = git(source, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except subprocess.CalledProcessError:  # nothing was ever committed
        return None, b""
    try:
        return commit, code_diff(source, commit)
    except (OSError, subprocess.SubprocessError) as error:
        raise OSError(f"{source}: {_reason(error)}: commit what you want to launch, or repair the checkout") from error


def _find(path: Path, files: _Files) -> dict[str, Any] | None:
    """Return what a snapshot says of itself if it is there, and whole: clusters delete old files one by one."""
    try:
        about = read_json(path / "snapshot.json")
        if about is None or (about["dirty"] and not (path / "code.diff").is_file()):
            return None
        whole = all((path / name).read_bytes() == content for name, (_, content) in files.items())
    except (OSError, ValueError):
        return None
    return about if whole else None


def _write(path: Path, files: _Files, *, commit: str | None, diff: bytes) -> dict[str, Any]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    about = {"snapshot": path.name, "commit": commit, "dirty": bool(diff), "created": time.time()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.mkdir(mode=0o700)
        for folder in {(temporary / name).parent for name in files}:
            folder.mkdir(parents=True, exist_ok=True)
        for name, (executable, content) in files.items():
            _write_readonly(temporary / name, content, executable=executable)
        if diff:
            _write_readonly(temporary / "code.diff", diff)
        write_json(temporary / "snapshot.json", about)
        (temporary / "snapshot.json").chmod(0o444)
        with file_lock(path.parent / ".lock"):
            return _put(temporary, path, files) or about
    except OSError as error:
        raise OSError(
            f"runs_root={path.parents[1]}: no snapshot of the code could be written ({error.strerror}):"
            " choose a folder you can write, with space left"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_readonly(path: Path, content: bytes, *, executable: bool = False) -> None:
    path.write_bytes(content)
    path.chmod(0o555 if executable else 0o444)  # jobs share it: it is not for editing


def _put(temporary: Path, path: Path, files: _Files) -> dict[str, Any] | None:
    """Rename a finished copy into place, or return what another process's says that was faster."""
    found = _find(path, files)
    if found is not None:
        return found
    damaged = temporary.with_suffix(".damaged")
    if path.exists():
        logger.warning("%s was incomplete or had been edited: it is put right", path)
        path.rename(damaged)
    temporary.rename(path)
    fsync_directory(path.parent)
    shutil.rmtree(damaged, ignore_errors=True)
    return None
