"""What a manifest is built from: the list of a dataset's files, and how to tell that nothing of it has changed.

Every file is looked at and none is opened, so that a launch knows in a moment that a dataset is as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.data.datasets import list_official
from crisscross.data.file_list import ListedClip, read_csv, scan_tree

STREAMS = ("video", "audio")

FileStat = tuple[int, int]
"""Size in bytes and modification time in ns of a file: they change when it does."""

NO_FILE: FileStat = (0, 0)


@dataclass(frozen=True)
class Source:
    """Where a dataset's clips are listed, and what is asked of them; ``of`` says what each setting means.

    Raises:
        FileNotFoundError: the root is missing.
        ValueError: a setting is wrong.
    """

    root: Path
    csv: Path | None
    file_column: str
    label_column: str
    split_column: str | None
    test_fraction: float
    require: tuple[str, ...]
    thorough: bool
    official: str | None
    annotations: Path | None
    allow_missing: bool

    @classmethod
    def of(
        cls,
        *,
        root: str | Path | None,
        csv: str | Path | None = None,
        file_column: str = "file",
        label_column: str = "label",
        split_column: str | None = "split",
        test_fraction: float = 0.3,
        require: Sequence[str] = STREAMS,
        thorough: bool = False,
        official: str | None = None,
        annotations: str | Path | None = None,
        allow_missing: bool = False,
    ) -> Source:
        """Check the settings and make the paths absolute.

        Args:
            root: the folder of the clips; None means the CSV's folder.
            csv: a list of the clips; None means that the tree ``<split>/<class>/<file>`` or ``<class>/<file>`` is it.
            file_column: the CSV's column of files, relative to the root or to the CSV's folder.
            label_column: its column of classes.
            split_column: its column of splits, whose values are used as they are (several joined by ``+``); None, or
                ``"split"`` where there is no such column, means that clips are split by the hash of their paths.
            test_fraction: the part of each class that such a split makes the test.
            require: the streams that a clip must have: ``"video"``, ``"audio"`` or both.
            thorough: decode files whole, so that one that is damaged anywhere is found now.
            official: the dataset whose official lists name the clips, a key of ``official.DATASETS``.
            annotations: where those lists are; None means under the root.
            allow_missing: whether much of what they name may be missing.
        """
        list_path = None if csv is None else Path(csv).absolute()
        if root is not None:
            folder = Path(root).absolute()
        elif list_path is not None:
            folder = list_path.parent
        else:
            raise ValueError(
                "neither root nor csv is given: give the folder of the clips, a CSV that lists them, or both"
            )
        if not 0 <= test_fraction < 1:
            raise ValueError(f"test_fraction must be in [0, 1), got {test_fraction}: 0.3 makes 3 clips in 10 the test")
        if isinstance(require, str) or not require or not set(require) <= set(STREAMS):
            raise ValueError(f"require must name some of {STREAMS}, got {require!r}")
        if not folder.is_dir():
            raise FileNotFoundError(f"the data folder {folder} does not exist: give the folder that holds the clips")
        columns = (file_column, label_column, split_column)
        lists = None if annotations is None else Path(annotations).absolute()
        streams = tuple(require)
        return cls(
            folder, list_path, *columns, test_fraction, streams, thorough, official, lists, allow_missing=allow_missing
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON, less the root."""
        return {
            "csv": None if self.csv is None else str(self.csv),
            "file_column": self.file_column,
            "label_column": self.label_column,
            "split_column": self.split_column,
            "test_fraction": self.test_fraction,
            "require": list(self.require),
            "thorough": self.thorough,
            "official": self.official,
            "annotations": None if self.annotations is None else str(self.annotations),
        }

    def list_clips(self) -> list[ListedClip]:
        """List the files, from the CSV, the tree or the official lists.

        Raises:
            FileNotFoundError: the CSV or an official list is missing.
            ValueError: the list cannot be used, or is empty, or too much of what it names is missing.
        """
        if self.official is not None:
            return list_official(self.official, self.root, self.annotations, allow_missing=self.allow_missing)
        if self.csv is None:
            return scan_tree(self.root)
        return read_csv(
            self.csv,
            self.root,
            file_column=self.file_column,
            label_column=self.label_column,
            split_column=self.split_column,
        )

    def stamps(self, listed: Iterable[ListedClip]) -> list[FileStat]:
        """Look at every file that the list alone does not rule out, in the list's order."""
        return [NO_FILE if row.problem else file_stat(self.root, row.path) or NO_FILE for row in listed]

    def digest(self, listed: Iterable[ListedClip], stamps: Iterable[FileStat], *, version: Any) -> str:
        """Return a hash that changes when the settings, the list, a file or the ``version`` of the code does."""
        digest = hashlib.sha256(json.dumps([version, str(self.root), self.settings]).encode())
        for row, stamp in zip(listed, stamps, strict=True):
            digest.update(json.dumps([row.path, row.label, row.split, row.problem, *stamp]).encode())
        return digest.hexdigest()


def file_stat(root: Path, path: str) -> FileStat | None:
    """Return the stamp of a file below ``root``; None when it is no regular file."""
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 (a tenth of the time, and there may be 240,000)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
