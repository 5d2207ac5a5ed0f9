"""What every reader of an official dataset needs: the files that are there, the lists, and how the two are matched.

A reader turns the official lists into ``ExpectedClip`` rows; ``match`` finds their files. Whatever the lists name and
the folder lacks, or the other way round, is listed with its problem, so that nothing is dropped in silence.
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
"""The problem of a clip that the official lists name and that is not there."""

MISSING_FRACTION = 0.05
"""Of the listed clips, more than these are not a gap but half a download (chosen by us)."""

NOT_LISTED = "no official list names it"
CLASSES_FOLDER = Path(__file__).parent / "classes"
NUM_NAMED = 3  # how many files an error names


@dataclass(frozen=True)
class ExpectedClip:
    """A clip as the official lists name it.

    Attributes:
        key: what finds its file, see ``match``.
        path: where it lies in the official layout; by this it is named when it is missing.
        label: its class.
        split: its splits, joined by ``+``.
        problem: why it cannot be used, as far as the lists tell.
    """

    key: str
    path: str
    label: str
    split: str
    problem: str = ""


@dataclass
class DatasetFolder:
    """Where a dataset lies.

    Attributes:
        dataset: its name in the catalogue.
        root: the folder of the clips.
        annotations: the folder or file of the official lists; None means that they are looked for under the root.
        lists: what the official lists are called, for error messages.
        layout: what the root holds, likewise.
        classes: the dataset's classes; empty where the lists define them.
    """

    dataset: str
    root: Path
    annotations: Path | None
    lists: str
    layout: str
    classes: frozenset[str] = field(default_factory=frozenset)

    def files(self) -> list[str]:
        """Return every media file under the root, sorted, by one look into each folder.

        Raises:
            ValueError: there is none.
        """
        files = sorted(media_files(self.root))
        if not files:
            raise ValueError(
                f"data.root={self.root} holds no media files: expected {self.layout}; give the folder of {self.dataset}"
            )
        return files

    def find_lists(self, pattern: str, usual: Sequence[str], *, single: bool = False) -> list[Path]:
        """Return the official lists whose whole name matches a pattern, from the first folder that has any.

        Args:
            pattern: a regular expression.
            usual: folders relative to the root in which the lists usually lie.
            single: whether one list is all there is, so that ``annotations`` may name it, whatever it is called.

        Raises:
            FileNotFoundError: there are none.
        """
        if self.annotations is not None and self.annotations.is_file():
            if single:
                return [self.annotations]
            folders = [self.annotations.parent]
        else:
            folders = [self.annotations] if self.annotations else [self.root / name for name in usual]
        for folder in folders:
            if folder.is_dir():
                found = [file for file in sorted(folder.iterdir()) if re.fullmatch(pattern, file.name)]
                if found:
                    return found
        raise self.lacks("", folders)

    def lacks(self, name: str, folders: Iterable[Path]) -> FileNotFoundError:
        """Return the error for an official list that is not there."""
        looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        return FileNotFoundError(
            f"data.annotations={self.annotations or 'null'}: {looked} has no {name or 'official list'}: expected"
            f" {self.lists} of {self.dataset}; set data.annotations to the folder that holds them, or to the file"
        )

    def check_label(self, label: str, where: str) -> str:
        """Return a label that is one of the dataset's classes.

        Raises:
            ValueError: it is none.
        """
        if label in self.classes or not self.classes:
            return label
        raise ValueError(
            f"{where}: the label {label!r} is none of the {len(self.classes)} classes of {self.dataset}"
            f"{_did_you_mean(label, self.classes)}: correct the list, or check data={self.dataset}"
        )

    def class_of(self, file: str) -> str | None:
        """Return the class that a file's folder is named after, if it is one; ``_`` may stand for a space."""
        name = file.rpartition("/")[0].rpartition("/")[2]
        return next((text for text in (name, name.replace("_", " ")) if text in self.classes), None)

    def check_folders(self, files: Iterable[str], labels: Iterable[str]) -> None:
        """Look for class folders that are misspelt: almost the name of a class that has no folder of its own.

        Args:
            files: the media files.
            labels: the classes that the lists name.

        Raises:
            ValueError: there is one.
        """
        folders = sorted({file.rpartition("/")[0] for file in files})
        without = {label.casefold(): label for label in set(labels) - {self.class_of(f"{name}/") for name in folders}}
        for folder in folders:
            name = PurePosixPath(folder).name.casefold()
            close = difflib.get_close_matches(name, sorted(without), n=1, cutoff=0.8)
            if close and self.class_of(f"{folder}/") is None:
                meant = without[close[0]]
                raise ValueError(
                    f"data.root={self.root}: the folder {folder} is named after no class of {self.dataset}:"
                    f" did you mean {meant!r}? Rename it"
                )


def match(
    wanted: Iterable[ExpectedClip],
    files: Iterable[str],
    key_of: Callable[[str], str | None],
    *,
    ignore: Iterable[str] = (),
) -> list[ListedClip]:
    """Give every clip of the official lists its file.

    Args:
        wanted: the clips.
        files: the media files below the root.
        key_of: returns a file's key, None when its name says nothing.
        ignore: keys of files that belong to something else and are left alone.

    Returns:
        A row for every clip and for every file but the ignored ones: missing clips, second copies of a file and files
        that no list names have a problem.
    """
    by_key: dict[str | None, list[str]] = defaultdict(list)
    for file in files:
        by_key[key_of(file)].append(file)
    strays = by_key.pop(None, [])
    rows, seen = [], set()
    for clip in wanted:
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
    strays += [file for key, found in by_key.items() if key not in seen for file in found]
    rows += [ListedClip(file, "", None, NOT_LISTED) for file in sorted(strays)]
    return [checked_name(row) for row in rows]


def check_complete(place: DatasetFolder, listed: Sequence[ListedClip]) -> None:
    """Make sure that a dataset is not half downloaded.

    Raises:
        ValueError: more than 5 % of the listed clips, or a class, are missing.
    """
    missing = [row for row in listed if row.problem == MISSING]
    there = {row.label for row in listed if not row.problem}
    classes = sorted({row.label for row in missing} - there)
    num_listed = len(missing) + sum(not row.problem for row in listed)
    if not classes and len(missing) <= MISSING_FRACTION * num_listed:
        return
    whole = f", among them all of {len(classes)} classes ({named(classes)})" if classes else ""
    raise ValueError(
        f"data.root={place.root}: {len(missing)} of the {num_listed} clips of {place.dataset} are missing{whole}, such"
        f" as {named([row.path for row in missing])} (expected {place.layout}; at most {MISSING_FRACTION:.0%} may be"
        " missing): get the rest, or set data.allow_missing=true to go on without"
    )


def missing_by_split(listed: Iterable[ListedClip]) -> dict[str, tuple[int, int]]:
    """Return for each split how many clips are missing, and of how many."""
    missing: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in listed:
        if row.split and row.problem in ("", MISSING):
            names = row.split.split("+")
            total.update(names)
            missing.update(names if row.problem else ())
    return {name: (missing[name], total[name]) for name in sorted(total)}


def named(names: Sequence[str]) -> str:
    """Return the first few names and whether there are more."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def add_side(splits: dict[str, list[str]], file: str, side: str, fold: int, where: str) -> None:
    """Put a clip into a split of a fold.

    Raises:
        ValueError: it is in one already: tested clips must not be among those that are learnt from.
    """
    if any(name in splits[file] for name in (f"train{fold}", f"test{fold}")):
        raise ValueError(f"{where}: {file} is listed twice for fold {fold}: give the original lists")
    splits[file].append(f"{side}{fold}")


def read_classes(name: str) -> frozenset[str]:
    """Return the class names of a dataset, one a line of ``classes/<name>.txt``."""
    return frozenset((CLASSES_FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n")) - {""}


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line of an official list stands, and its text; blank ones are left out.

    Raises:
        ValueError: the list is not text.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield where each row of an official CSV stands, and its cells of the asked columns.

    Raises:
        ValueError: a column is missing, or the file is no CSV.
    """
    reader = csv_format.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    for name in columns:
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}: got {', '.join(header) or 'nothing'}; give the original")
    places = [header.index(name) for name in columns]
    for row in reader:
        if not "".join(row).strip():
            continue
        if len(row) <= max(places):
            raise ValueError(f"{path}, line {reader.line_num}: {len(row)} fields, expected {len(header)}")
        yield f"{path}, line {reader.line_num}", [row[place].strip() for place in places]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({error.reason}): give the original list, as UTF-8") from None


def stem(file: str) -> str:
    """Return a file's name without folder and suffix."""
    return PurePosixPath(file).stem


def folder_and_stem(file: str) -> str:
    """Return the name of the folder that a file lies in and its own name without suffix."""
    path = PurePosixPath(file)
    return f"{path.parent.name}/{path.stem}"


def _did_you_mean(label: str, classes: Iterable[str]) -> str:
    close = difflib.get_close_matches(label, sorted(classes), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
