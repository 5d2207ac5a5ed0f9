"""Pack the files of a dataset into a few large tar files, which a job brings to its node's own disk quickly.

In the shards' folder, by default ``shards`` in the dataset's root:

- ``shard-00000.tar`` ...: plain tar files, no compression (clips are compressed already). The same files give the same
  bytes: sorted by path, owner, mode and time left out.
- ``index.json``: which file is in which shard, sizes, SHA-256 of each shard; written when all shards are there.
- ``.parts``: what each shard was packed from. Pack again after a kill or a change: a shard whose files are as they were
  is kept. Several processes or array tasks can share the work.

``python -m crisscross.data.prepare DATASET --shards`` packs; ``python -m crisscross.data.shards FOLDER`` reads every
shard and compares it with the index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from crisscross.data.parallel import check_work, share_of, working_folder
from crisscross.data.source import FileStat, file_stat
from crisscross.utils.files import file_lock, read_json, write_json, write_text

SHARDS_VERSION = 1
DEFAULT_FOLDER = "shards"
DEFAULT_SHARD_BYTES = 10**9  # chosen by us: large enough for a cluster's file system, small enough to pack anew
INDEX = "index.json"


@dataclass(frozen=True)
class Report:
    """How a packing stands.

    Attributes:
        target: the shards' folder.
        num_files: files to pack.
        num_shards: shards they make.
        num_pending: shards that are left, for other shares or a later call.
        num_bytes: size of the finished shards.
    """

    target: Path
    num_files: int
    num_shards: int
    num_pending: int
    num_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether every shard is there, so that ``index.json`` is."""
        return self.num_pending == 0

    def __str__(self) -> str:
        line = f"{self.num_files} files in {self.num_shards} shards in {self.target} ({self.num_bytes / 1e9:.3f} GB)"
        return line if self.is_complete else f"{line}; {self.num_pending} shards left"


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        target: the folder.
        shards: for each shard ``name``, ``num_bytes``, ``sha256`` and ``files``: [path, size] in the shard's order.
    """

    target: Path
    shards: list[dict[str, Any]]


def pack(
    root: str | Path,
    target: str | Path | None = None,
    *,
    paths: Sequence[str] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    share: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Report:
    """Pack files below a root into shards.

    Args:
        root: the dataset's folder.
        target: the shards' folder; None means ``shards`` in the root.
        paths: the files, relative to the root; None means all that are not hidden, nor in ``target``.
        shard_bytes: about the size of a shard; a larger file has a shard of its own.
        share: (k, n): pack every n-th shard from the k-th on, counted from 1.
        progress: show a progress bar.

    Returns:
        How the packing stands, over all shares.

    Raises:
        FileNotFoundError: the root or a file is missing.
        ValueError: a setting is wrong, there is nothing to pack, or a file changes while it is packed.
        OSError: the target cannot be written, or is full; one line.
    """
    from crisscross.data.manifest import check_inside

    check_work(None, share)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes={shard_bytes}: expected the size of a shard in bytes, such as 1000000000")
    root = Path(root).absolute()
    target = (root / DEFAULT_FOLDER if target is None else Path(target)).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist: give the dataset's root")
    files = sorted(set(paths)) if paths is not None else sorted(_visible_files(root, target))
    check_inside(files, what="packed")
    planned = _plan(_stamped(root, files), shard_bytes)
    try:
        (target / ".parts").mkdir(parents=True, exist_ok=True)
        mine = [number for number in share_of(range(len(planned)), share) if not _packed(target, number, planned)]
        _pack_all(root, target, planned, mine, progress=progress)
        with file_lock(target / ".shards.lock"):
            return _finish(target, planned)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write shards to {target} ({reason}): free space or choose another folder") from error


def read_index(target: str | Path) -> Index | None:
    """Return what a folder of shards holds; None when there is no index.

    Raises:
        ValueError: the index is not one of ours.
    """
    found = read_json(Path(target) / INDEX)
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{Path(target) / INDEX} is no index of shards: give the folder of the shards, or pack again")
    if found.get("version") != SHARDS_VERSION:
        raise ValueError(f"{Path(target) / INDEX} has version {found.get('version')}, not {SHARDS_VERSION}: pack again")
    return Index(Path(target), found["shards"])


def verify(target: str | Path, *, progress: bool = True) -> list[str]:
    """Read every shard and compare it with the index.

    Args:
        target: the shards' folder.
        progress: show a progress bar.

    Returns:
        What is wrong, one line a shard; empty when all is well.

    Raises:
        FileNotFoundError: there is no index, saying what there is and what to do.
    """
    index = read_index(target)
    if index is None:
        raise FileNotFoundError(_no_index(Path(target)))
    problems = []
    for shard in _tracked(index.shards, "verifying shards", progress=progress):
        path = index.target / shard["name"]
        problem = _problem(path, shard)
        if problem:
            problems.append(f"{path}: {problem}: delete it and pack again")
    return problems


def _no_index(target: Path) -> str:
    """Return one line about a folder that is not one of finished shards."""
    expected = f"expected a folder of shards ({INDEX}, shard-00000.tar, ...)"
    pack_them = "python -m crisscross.data.prepare DATASET --root DIR --shards"
    if not target.is_dir():
        return f"{target} is no folder: {expected}: give that"
    if (target / DEFAULT_FOLDER / INDEX).is_file():
        return f"{target} has no {INDEX}, {target / DEFAULT_FOLDER} has: give that folder"
    if (target / ".parts").is_dir():
        return f"{target} has no {INDEX}: its shards are not all packed: pack them to the end with {pack_them}"
    return f"{target} holds no shards: {expected}: give that, or make them with {pack_them}"


def _problem(path: Path, shard: dict[str, Any]) -> str:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != shard["num_bytes"]:
        return f"{path.stat().st_size} bytes, expected {shard['num_bytes']}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == shard["sha256"] else f"SHA-256 {digest[:12]}, expected {shard['sha256'][:12]}"


def _visible_files(root: Path, target: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root, followlinks=True):
        inside = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and inside / name != target]
        yield from ((inside / name).relative_to(root).as_posix() for name in names if not name.startswith("."))


def _stamped(root: Path, files: Sequence[str]) -> list[tuple[str, FileStat]]:
    stamped: list[tuple[str, FileStat]] = []
    missing: list[str] = []
    for path in files:
        stamp = file_stat(root, path)
        if stamp is None:
            missing.append(path)
        else:
            stamped.append((path, stamp))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files to pack are not under {root}, such as {missing[0]}: put them back"
        )
    if not stamped:
        raise ValueError(f"there are no files to pack under {root}: give the dataset's root")
    return stamped


def _plan(files: list[tuple[str, FileStat]], shard_bytes: int) -> list[list[tuple[str, FileStat]]]:
    """Part sorted files into shards of at least one file, at most ``shard_bytes`` where a file allows it."""
    planned: list[list[tuple[str, FileStat]]] = []
    room = 0
    for path, stamp in files:
        if not planned or stamp[0] > room:
            planned.append([])
            room = shard_bytes
        planned[-1].append((path, stamp))
        room -= stamp[0]
    return planned


def _name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _part_path(target: Path, number: int) -> Path:
    return target / ".parts" / f"{number:05d}.json"


def _packed(target: Path, number: int, planned: list[list[tuple[str, FileStat]]]) -> dict[str, Any] | None:
    """Return what is to be known of a shard that is there, packed from the files as they are now; else None."""
    part = read_json(_part_path(target, number))
    if part is None or part["packed_from"] != [[path, *stamp] for path, stamp in planned[number]]:
        return None
    shard = target / _name(number)
    return part if shard.is_file() and shard.stat().st_size == part["num_bytes"] else None


def _pack_all(
    root: Path, target: Path, planned: list[list[tuple[str, FileStat]]], numbers: list[int], *, progress: bool
) -> None:
    if not numbers:
        return
    (target / INDEX).unlink(missing_ok=True)  # it tells of shards that are about to change
    with working_folder(target) as workplace:
        for number in _tracked(numbers, "packing shards", progress=progress):
            _part_path(target, number).unlink(missing_ok=True)
            partial = workplace / uuid.uuid4().hex
            part = _pack_one(root, partial, planned[number])
            partial.replace(target / _name(number))
            write_json(_part_path(target, number), part)


def _pack_one(root: Path, shard: Path, files: list[tuple[str, FileStat]]) -> dict[str, Any]:
    """Write one shard and return what is to be known of it."""
    with shard.open("wb") as raw:
        output = _Hashing(raw)
        with tarfile.open(  # type: ignore[call-overload]  # what streams is only written to
            fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as tar:
            for path, stamp in files:
                member = tarfile.TarInfo(path)
                member.size, member.mode = stamp[0], 0o644
                with (root / path).open("rb") as file:
                    try:
                        tar.addfile(member, file)
                    except OSError as error:
                        if error.errno is not None:
                            raise
                        raise ValueError(f"{root / path} has changed while it was packed: run it again") from error
                if file_stat(root, path) != stamp:
                    raise ValueError(f"{root / path} has changed while it was packed: run it again")
        raw.flush()
        os.fsync(raw.fileno())
    packed_from = [[path, *stamp] for path, stamp in files]
    return {"packed_from": packed_from, "num_bytes": output.num_bytes, "sha256": output.digest.hexdigest()}


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.digest.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)


def _finish(target: Path, planned: list[list[tuple[str, FileStat]]]) -> Report:
    """See how the packing stands; when no shard is left, write the index."""
    found = {number: _packed(target, number, planned) for number in range(len(planned))}
    parts = {number: part for number, part in found.items() if part is not None}  # another process may pack one anew
    num_files = sum(len(files) for files in planned)
    num_bytes = sum(part["num_bytes"] for part in parts.values())
    report = Report(target, num_files, len(planned), len(planned) - len(parts), num_bytes)
    if report.is_complete:
        for old in target.glob("shard-*.tar"):  # of an earlier packing into more shards
            if int(old.stem.partition("-")[2]) >= len(planned):
                old.unlink()
        shards = [
            {
                "name": _name(number),
                "num_bytes": part["num_bytes"],
                "sha256": part["sha256"],
                "files": [[path, size] for path, size, _ in part["packed_from"]],
            }
            for number, part in parts.items()
        ]
        index = {"version": SHARDS_VERSION, "num_files": num_files, "shards": shards}
        write_text(target / INDEX, json.dumps(index, ensure_ascii=False))  # in one line: it may list millions of files
    return report


def _tracked(items: Sequence[Any], description: str, *, progress: bool) -> Iterator[Any]:
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=description, console=Console(stderr=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify shards from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crisscross.data.shards",
        description="Read every shard of a folder and compare it with the index.",
    )
    parser.add_argument("shards", type=Path, help="the folder that holds index.json")
    try:
        problems = verify(parser.parse_args(arguments).shards)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(problems) or "all shards are as the index says")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
