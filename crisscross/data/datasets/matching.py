"""Helpers of all dataset readers: find the official lists, read them, and match their clips with files.

A reader turns the official lists into ``ExpectedClip`` rows; ``match`` finds their files. Listed clips without a file
and files without a list entry become rows with a problem, so nothing is left out silently.
"""

from __future__ import annotations

import csv as csv_format
import difflib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from crisscross.data.file_list import ListedClip, checked_name, media_files

MISSING = "missing"
"""The problem of a listed clip without a file."""

MISSING_FRACTION = 0.05
"""# ours: the fraction of the listed clips from which on a dataset counts as incomplete."""

NOT_LISTED = "no official list names it"
CLASSES_FOLDER = Path(__file__).parent / "classes"
NUM_NAMED = 3  # number of files in an error message


@dataclass(frozen=True)
class ExpectedClip:
    """A clip as the official lists name it.

    Attributes:
        key: identifies its file, see ``match``.
        path: its path in the official layout, for messages if it is missing.
        label: its class.
        split: its splits, joined by ``+``.
        problem: why the lists rule it out; "" if they do not.
    """

    key: str
    path: str
    label: str
    split: str
    problem: str = ""


@dataclass
class DatasetFolder:
    """The folder and the official lists of a dataset.

    Attributes:
        name: its name in ``config.datasets.DATASETS``.
        root: the folder of the clips.
        annotations: the folder or file of the official lists; None means under the root.
        lists: the names of the official lists, for error messages.
        layout: the layout under the root, for error messages.
        classes: the dataset's classes; empty if the lists define them.
        used: the lists that were read.
    """

    name: str
    root: Path
    annotations: Path | None
    lists: str
    layout: str
    classes: frozenset[str] = field(default_factory=frozenset)
    used: list[Path] = field(default_factory=list)

    def files(self) -> list[str]:
        """Return every media file under the root, sorted.

        Each folder is listed once.

        Raises:
            ValueError: if there is none.
        """
        files = sorted(media_files(self.root))
        if not files:
            raise ValueError(
                f"data.root={self.root} holds no media files: expected {self.layout}; give the folder of {self.name}"
            )
        return files

    def find_lists(self, pattern: str, usual: Sequence[str], *, single: bool = False) -> list[Path]:
        """Return the official lists of the first folder that has any.

        Args:
            pattern: a regular expression for the whole file name.
            usual: folders to search, relative to the root.
            single: whether there is only one list, so that ``annotations`` may be that file under any name.

        Raises:
            FileNotFoundError: if there are none.
        """
        if self.annotations is not None and self.annotations.is_file():
            if single:
                self.used[:] = [self.annotations]
                return [self.annotations]
            folders = [self.annotations.parent]
        else:
            folders = [self.annotations] if self.annotations else [self.root / name for name in usual]
        for folder in folders:
            if folder.is_dir():
                found = [file for file in sorted(folder.iterdir()) if re.fullmatch(pattern, file.name)]
                if found:
                    self.used[:] = found
                    return found
        raise self.lacks("", folders)

    def choose_list(self, found: Sequence[Path], exact: Sequence[str]) -> Path:
        """Return the one list to read of those whose names fit.

        Args:
            found: the lists, at least one.
            exact: the official names; the first that exists wins.

        Raises:
            ValueError: if there are several, none of them with an official name.
        """
        by_name = {path.name: path for path in found}
        official = [by_name[name] for name in exact if name in by_name]
        if not official and len(found) > 1:
            names = ", ".join(sorted(by_name))
            raise ValueError(
                f"data.annotations={self.annotations or 'null'}: {found[0].parent} has several lists of one split:"
                f" {names}: keep one of them there, or name it {exact[0]}"
            )
        return (official or list(found))[0]

    def lacks(self, name: str, folders: Iterable[Path]) -> FileNotFoundError:
        """Return the error for a missing official list."""
        looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        return FileNotFoundError(
            f"data.annotations={self.annotations or 'null'}: {looked} has no {name or 'official list'}: expected"
            f" {self.lists} of {self.name}; set data.annotations to the folder that holds them, or to the file"
        )

    def check_label(self, label: str, where: str) -> str:
        """Check that a label is a class of the dataset; return it.

        Raises:
            ValueError: if it is not.
        """
        if label in self.classes or not self.classes:
            return label
        raise ValueError(
            f"{where}: the label {label!r} is none of the {len(self.classes)} classes of {self.name}"
            f"{_did_you_mean(label, self.classes)}: correct the list, or check data={self.name}"
        )

    def class_of(self, file: str) -> str | None:
        """Return the class after which a file's folder is named, or None.

        ``_`` may replace a space.
        """
        name = file.rpartition("/")[0].rpartition("/")[2]
        return next((text for text in (name, name.replace("_", " ")) if text in self.classes), None)

    def check_folders(self, files: Iterable[str], labels: Iterable[str]) -> None:
        """Check that no class folder is misspelt.

        A misspelt folder has almost the name of a class without a folder.

        Args:
            files: the media files.
            labels: the classes in the lists.

        Raises:
            ValueError: if a folder is misspelt.
        """
        folders = sorted({file.rpartition("/")[0] for file in files})
        without = {label.casefold(): label for label in set(labels) - {self.class_of(f"{name}/") for name in folders}}
        for folder in folders:
            name = PurePosixPath(folder).name.casefold()
            close = difflib.get_close_matches(name, sorted(without), n=1, cutoff=0.8)
            if close and self.class_of(f"{folder}/") is None:
                meant = without[close[0]]
                raise ValueError(
                    f"data.root={self.root}: the folder {folder} is named after no class of {self.name}:"
                    f" did you mean {meant!r}? Rename it"
                )


def match(
    expected: Iterable[ExpectedClip],
    files: Iterable[str],
    key_of: Callable[[str], str | None],
    *,
    ignore: Iterable[str] = (),
) -> list[ListedClip]:
    """Match every clip of the official lists with its file.

    Args:
        expected: the clips of the official lists.
        files: the media files below the root.
        key_of: returns a file's key, None if its name has none.
        ignore: keys of files that are left out without a row.

    Returns:
        One row per clip and per file but the ignored ones: missing clips, second copies of a file and unlisted files
        have a problem.
    """
    by_key: dict[str | None, list[str]] = defaultdict(list)
    for file in files:
        by_key[key_of(file)].append(file)
    unlisted = by_key.pop(None, [])
    rows, seen = [], set()
    for clip in expected:
        if clip.key in seen:
            rows.append(ListedClip(clip.path, clip.label, None, "listed more than once"))
            continue
        seen.add(clip.key)
        name = clip.path.rpartition("/")[2]
        found = sorted(by_key.get(clip.key, ()), key=lambda file: (file.rpartition("/")[2] != name, file))
        if not found:
            rows.append(ListedClip(clip.path, clip.label, clip.split, clip.problem or MISSING))
            continue
        rows.append(ListedClip(found[0], clip.label, clip.split, clip.problem))
        rows += [ListedClip(other, clip.label, None, f"a second file of {found[0]}") for other in found[1:]]
    seen.update(ignore)
    unlisted += [file for key, found in by_key.items() if key not in seen for file in found]
    rows += [ListedClip(file, "", None, NOT_LISTED) for file in sorted(unlisted)]
    return [checked_name(row) for row in rows]


def check_complete(dataset: DatasetFolder, listed: Sequence[ListedClip]) -> None:
    """Check that a dataset is completely downloaded.

    Raises:
        ValueError: if more than 5 % of the listed clips, or all clips of a class, are missing.
    """
    missing = [row for row in listed if row.problem == MISSING]
    there = {row.label for row in listed if not row.problem}
    classes = sorted({row.label for row in missing} - there)
    num_listed = len(missing) + sum(not row.problem for row in listed)
    if not classes and len(missing) <= MISSING_FRACTION * num_listed:
        return
    whole = f", among them all of {len(classes)} classes ({first_names(classes)})" if classes else ""
    raise ValueError(
        f"data.root={dataset.root}: {len(missing)} of the {num_listed} clips of {dataset.name} are missing{whole}, such"
        f" as {first_names([row.path for row in missing])} (expected {dataset.layout}; at most"
        f" {MISSING_FRACTION:.0%} may be missing): get the rest, or set data.allow_missing=true to go on without"
    )


def missing_by_split(listed: Iterable[ListedClip]) -> dict[str, tuple[int, int]]:
    """Return the numbers of missing and of listed clips by split."""
    missing: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in listed:
        if row.split and row.problem in ("", MISSING):
            names = row.split.split("+")
            total.update(names)
            missing.update(names if row.problem else ())
    return {name: (missing[name], total[name]) for name in sorted(total)}


def first_names(names: Sequence[str]) -> str:
    """Join the first few names, with dots if there are more."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def add_side(splits: dict[str, list[str]], file: str, side: str, fold: int, where: str) -> None:
    """Add a clip to one side of a fold.

    Raises:
        ValueError: if it is in the fold already, as train and test must be disjoint.
    """
    if any(name in splits[file] for name in (f"train{fold}", f"test{fold}")):
        raise ValueError(f"{where}: {file} is listed twice for fold {fold}: give the original lists")
    splits[file].append(f"{side}{fold}")


def read_classes(name: str) -> frozenset[str]:
    """Read the class names of a dataset from ``classes/<name>.txt``, one per line."""
    return frozenset((CLASSES_FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n")) - {""}


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield location and text of each line of an official list.

    Blank lines are left out.

    Raises:
        ValueError: if the list is not text.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield location and given columns of each row of an official CSV.

    Raises:
        ValueError: if a column is missing, or a row is too short.
    """
    reader = csv_format.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    for name in columns:
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}: got {', '.join(header) or 'nothing'}; give the original")
    indices = [header.index(name) for name in columns]
    for row in reader:
        if not "".join(row).strip():
            continue
        if len(row) <= max(indices):
            raise ValueError(f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(header)}")
        yield f"{path}, line {reader.line_num}", [row[index].strip() for index in indices]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({error.reason}): give the original list, as UTF-8") from None


def stem(file: str) -> str:
    """Return the name of a file without folder and suffix."""
    return PurePosixPath(file).stem


def folder_and_stem(file: str) -> str:
    """Return ``<folder>/<name>`` of a file, without suffix."""
    path = PurePosixPath(file)
    return f"{path.parent.name}/{path.stem}"


def _did_you_mean(label: str, classes: Iterable[str]) -> str:
    close = difflib.get_close_matches(label, sorted(classes), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
