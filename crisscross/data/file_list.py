"""List the files of a dataset with their labels and splits, from a folder tree or a CSV. Nothing is opened here.

Official datasets have readers of their own: ``crisscross/data/official``.
"""

from __future__ import annotations

import csv as csv_format
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

MEDIA_SUFFIXES = frozenset(
    [
        ".3gp",
        ".aac",
        ".asf",
        ".avi",
        ".flac",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4a",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogg",
        ".ogv",
        ".opus",
        ".ts",
        ".vob",
        ".wav",
        ".webm",
        ".wma",
        ".wmv",
    ]
)

SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "eval"))


@dataclass(frozen=True)
class ListedClip:
    """A file as the dataset lists it.

    Attributes:
        path: relative to the dataset's root, with forward slashes.
        label: its class.
        split: ``"train"``, ``"test"`` or another name, several joined by ``+``; None where the dataset leaves it open.
        problem: why it cannot be used, as far as the list alone tells; "" when nothing speaks against it.
    """

    path: str
    label: str
    split: str | None
    problem: str = ""


def scan_tree(root: Path) -> list[ListedClip]:
    """List the media files under ``<split>/<class>/<file>`` or ``<class>/<file>``, sorted by path.

    Files elsewhere in the tree are listed with a problem; hidden files and other kinds of file are passed over.

    Raises:
        FileNotFoundError: the root is missing.
        ValueError: the root is empty or holds no media file.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} does not exist: give the folder that holds the clips")
    files = sorted(media_files(root))
    if not files:
        what = "holds no media files" if any(root.iterdir()) else "is empty"
        raise ValueError(
            f"the data folder {root} {what}: expected <split>/<class>/<file> or <class>/<file>,"
            f" with files such as .mp4, .avi or .mkv"
        )
    parts = [tuple(file.split("/")) for file in files]
    deep = {p[0] for p in parts if len(p) == 3}
    has_splits = bool(deep) and ({d.lower() for d in deep} <= SPLIT_NAMES or all(len(p) != 2 for p in parts))
    expected = "<split>/<class>/<file>" if has_splits else "<class>/<file>"
    listed = []
    for file, names in zip(files, parts, strict=True):
        if len(names) != expected.count("/") + 1:
            listed.append(ListedClip(file, "", None, f"not at {expected}"))
        else:
            listed.append(ListedClip(file, names[-2], names[0] if has_splits else None))
    return [checked_name(row) for row in listed]


def read_csv(
    csv: Path, root: Path, *, file_column: str, label_column: str, split_column: str | None
) -> list[ListedClip]:
    """List the files that a CSV names, in the order of the CSV; each file once.

    A file is looked for under the root, then beside the CSV. A missing split column called ``"split"``, the default,
    leaves the splits open; any other name must be there.

    Raises:
        FileNotFoundError: the CSV is missing.
        ValueError: a column is missing, or the CSV has no rows or cannot be read.
    """
    if not csv.is_file():
        raise FileNotFoundError(f"the list {csv} does not exist: give the CSV that names files and labels")
    try:
        header, rows = _read_table(csv)
    except (csv_format.Error, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"the list {csv} cannot be read as CSV ({text}): save it as UTF-8 with a header") from error
    if split_column == "split" and "split" not in header:
        split_column = None
    for name, column in (("file", file_column), ("label", label_column), ("split", split_column)):
        if column is not None and column not in header:
            raise ValueError(f"the list {csv} has no column {column!r} for the {name}: it has {', '.join(header)}")
    if not rows:
        raise ValueError(f"the list {csv} has a header but no rows: expected one row a clip")
    file, label = header.index(file_column), header.index(label_column)
    split = None if split_column is None else header.index(split_column)
    cells = ((row[file], row[label].strip(), None if split is None else row[split].strip()) for row in rows)
    return list(_rows(csv, root, cells))


def _read_table(csv: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV, blank lines left out, short rows filled up with empty cells."""
    with csv.open(newline="", encoding="utf-8-sig") as file:
        reader = csv_format.reader(file, strict=True)
        header: list[str] = []
        rows = []
        for row in reader:
            if len(row) <= 1 and not "".join(row).strip():
                continue
            if not header:
                header = row
                continue
            if any(row[len(header) :]):
                raise csv_format.Error(f"line {reader.line_num} has {len(row)} fields, the header {len(header)}")
            rows.append([*row, *[""] * (len(header) - len(row))])
    if not header:
        raise csv_format.Error("it holds nothing")
    return header, rows


def assign_splits(clips: Sequence[ListedClip], *, test_fraction: float) -> list[ListedClip]:
    """Fill in open splits: in each class, the ``test_fraction`` of the clips whose paths hash lowest are the test.

    Each class of two clips or more gets at least one clip on either side; ``test_fraction`` 0 makes all of them train.
    The split depends on the paths alone, not on their order, the machine or a seed (chosen by us).
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        if clip.split is None:
            by_label[clip.label].append(clip.path)
    test: set[str] = set()
    for paths in by_label.values():
        num_test = round(len(paths) * test_fraction) if len(paths) > 1 else 0
        if len(paths) > 1 and test_fraction > 0:
            num_test = min(max(num_test, 1), len(paths) - 1)
        test.update(sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())[:num_test])
    return [
        clip if clip.split is not None else replace(clip, split="test" if clip.path in test else "train")
        for clip in clips
    ]


def media_files(root: Path) -> Iterator[str]:
    """Yield the media files below a folder, relative to it, by one look into each folder; hidden ones are left out."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        start = "" if inside == "." else f"{inside}/"
        for name in names:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in MEDIA_SUFFIXES:
                yield start + name


def _rows(csv: Path, root: Path, rows: Iterable[tuple[str, str, str | None]]) -> Iterator[ListedClip]:
    seen: set[str] = set()
    for file, label, split in rows:
        path = _resolve(file, csv.parent, root)
        problem = ""
        if not file:
            problem = "no file name"
        elif path in seen:
            problem = "listed more than once"
        elif not label:
            problem = "no label"
        elif split == "":
            problem = "no split"
        seen.add(path)
        yield checked_name(ListedClip(path, label, split, problem))


def _resolve(file: str, folder: Path, root: Path) -> str:
    """Return a file of a CSV relative to the root: found there, or else beside the CSV."""
    if not file:
        return ""
    inside, beside = root / file, folder / file
    if folder != root and beside.is_file() and not inside.is_file():
        return _relative(beside, root)
    plain = os.path.normpath(file)
    return _relative(inside, root) if plain.startswith(("/", "..")) else plain


def _relative(path: Path, root: Path) -> str:
    return PurePosixPath(os.path.relpath(path, root)).as_posix()


def checked_name(row: ListedClip) -> ListedClip:
    """Escape names that are not UTF-8: no table can hold them, so such a file is named and left out."""
    try:
        "".join((row.path, row.label, row.split or "")).encode()
    except UnicodeEncodeError:
        path, label = (text.encode(errors="backslashreplace").decode() for text in (row.path, row.label))
        return ListedClip(path, label, None, "the name is not UTF-8: rename the file")
    return row
