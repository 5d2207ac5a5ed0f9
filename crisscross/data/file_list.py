"""List the files of a dataset with their labels and splits, from a folder tree or a CSV.

No media file is opened. Official datasets have their own readers: ``crisscross/data/datasets``.
"""

from __future__ import annotations

import csv as csv_format
import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
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
        split: ``"train"``, ``"test"`` or another name, several joined by ``+``; None if the dataset has no splits.
        problem: why the list alone rules it out; "" if it does not.
    """

    path: str
    label: str
    split: str | None
    problem: str = ""


def scan_tree(root: Path) -> list[ListedClip]:
    """List the media files under ``<split>/<class>/<file>`` or ``<class>/<file>``, sorted by path.

    Files elsewhere in the tree are listed with a problem; hidden files and other file types are skipped.

    Raises:
        FileNotFoundError: if the root is missing.
        ValueError: if the root holds no media file.
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
    """List the files of a CSV in its order.

    A path is relative to the root or, if there is no such file, to the CSV's folder. The split column may be missing if
    it has the default name ``"split"``; the clips then have no split.

    Raises:
        FileNotFoundError: if the CSV is missing.
        ValueError: if a column is missing, or the CSV has no rows or cannot be read.
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
    """Return the header and the rows of a CSV.

    Blank lines are left out, and short rows are padded with empty cells.
    """
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


def assign_splits(clips: Sequence[ListedClip], *, test_fraction: float, val_fraction: float = 0.0) -> list[ListedClip]:
    """Assign the clips without a split to train, val or test.

    In each class, the ``test_fraction`` of the clips whose paths hash lowest is the test, and the ``val_fraction``
    after them is the validation split: the same test, whatever ``val_fraction``. A class of two or more clips gets at
    least one test clip, one of three or more one validation clip, unless the fraction is 0; one clip stays for train.
    """
    # ours: the split depends on the paths alone, not on their order, the machine or a seed.
    by_label: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        if clip.split is None:
            by_label[clip.label].append(clip.path)
    held_out: dict[str, str] = {}
    for paths in by_label.values():
        num_test = _num_held_out(len(paths), test_fraction, available=len(paths) - 1)
        num_val = _num_held_out(len(paths), val_fraction, available=len(paths) - 1 - num_test)
        order = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
        held_out |= dict.fromkeys(order[:num_test], "test") | dict.fromkeys(order[num_test : num_test + num_val], "val")
    return [clip if clip.split is not None else replace(clip, split=held_out.get(clip.path, "train")) for clip in clips]


def _num_held_out(num_clips: int, fraction: float, *, available: int) -> int:
    """Return how many of a class's clips a split takes: at least one, if it takes any and one is available."""
    return min(max(round(num_clips * fraction), 1), available) if fraction > 0 else 0


def media_files(root: Path) -> Iterator[str]:
    """Yield the media files below a folder, relative to it.

    Hidden files are left out. Each folder is listed once.
    """
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
    """Return the path of a CSV's file relative to the root."""
    if not file:
        return ""
    in_root, in_folder = root / file, folder / file
    if folder != root and in_folder.is_file() and not in_root.is_file():
        return _relative(in_folder, root)
    plain = os.path.normpath(file)
    return _relative(in_root, root) if plain.startswith(("/", "..")) else plain


def _relative(path: Path, root: Path) -> str:
    return PurePosixPath(os.path.relpath(path, root)).as_posix()


def merge_labels(rows: Sequence[ListedClip]) -> list[ListedClip]:
    """Give labels that look alike one spelling.

    Accented letters have two forms in Unicode, and some systems change one into the other in folder names. Where a
    dataset has a label in both, it gets the composed form (NFC).
    """
    composed = {label: unicodedata.normalize("NFC", label) for label in {row.label for row in rows}}
    twice = {form for form, number in Counter(composed.values()).items() if number > 1}
    return [replace(row, label=composed[row.label]) if composed[row.label] in twice else row for row in rows]


def checked_name(row: ListedClip) -> ListedClip:
    """Escape a name that is not UTF-8.

    No table can hold such a name, so the row gets a problem, too.
    """
    try:
        "".join((row.path, row.label, row.split or "")).encode()
    except UnicodeEncodeError:
        path, label = (text.encode(errors="backslashreplace").decode() for text in (row.path, row.label))
        return ListedClip(path, label, None, "the name is not UTF-8: rename the file")
    return row
