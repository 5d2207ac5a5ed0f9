"""The input of a manifest: the list of a dataset's files, and a hash that changes when any of them does.

Files are only stat'ed, never opened, so a launch finds out in a moment whether a dataset has changed.
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
from crisscross.data.file_list import ListedClip, merge_labels, read_csv, scan_tree

STREAMS = ("video", "audio")

FileStat = tuple[int, int]
"""Size in bytes and modification time in ns of a file."""

NO_FILE: FileStat = (0, 0)


@dataclass(frozen=True)
class Source:
    """Rules for listing clips and for which are usable.

    See ``of`` for the settings.
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
    val_fraction: float

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
        val_fraction: float = 0.0,
    ) -> Source:
        """Check the settings and make the paths absolute.

        Args:
            root: the folder of the clips; None means the CSV's folder.
            csv: a list of the clips; None means the files at ``<split>/<class>/<file>`` or ``<class>/<file>``.
            file_column: the CSV's column of files, relative to the root or to the CSV's folder.
            label_column: the CSV's column of classes.
            split_column: the CSV's column of splits, whose values are used as they are (several joined by ``+``).
                None, or ``"split"`` if there is no such column: clips are split by the hash of their paths.
            test_fraction: the part of each class that such a split assigns to the test.
            require: the streams that a clip must have: ``"video"``, ``"audio"`` or both.
            thorough: whether to decode files completely, to find damage anywhere in them.
            official: the dataset whose official lists name the clips, a key of ``datasets.READERS``.
            annotations: the folder or file of those lists; None means under the root.
            allow_missing: whether any number of the listed clips may be missing.
            val_fraction: the part of each class that a split by hash assigns to the validation split.

        Raises:
            FileNotFoundError: if the root is missing.
            ValueError: if a setting is wrong.
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
        if not 0 <= val_fraction < 1 - test_fraction:
            raise ValueError(
                f"val_fraction must be in [0, {1 - test_fraction:g}), got {val_fraction}, as test_fraction is"
                f" {test_fraction}: lower one of them"
            )
        if isinstance(require, str) or not require or not set(require) <= set(STREAMS):
            raise ValueError(f"require must name some of {STREAMS}, got {require!r}")
        if not folder.is_dir():
            raise FileNotFoundError(f"the data folder {folder} does not exist: give the folder that holds the clips")
        return cls(
            root=folder,
            csv=list_path,
            file_column=file_column,
            label_column=label_column,
            split_column=split_column,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            require=tuple(require),
            thorough=thorough,
            official=official,
            annotations=None if annotations is None else Path(annotations).absolute(),
            allow_missing=allow_missing,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON, without the root."""
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
            **({"val_fraction": self.val_fraction} if self.val_fraction else {}),  # older manifests stay up to date
        }

    def list_clips(self, used: list[Path] | None = None) -> list[ListedClip]:
        """List the files from the CSV, the tree or the official lists.

        Args:
            used: gets the official lists that were read.

        Raises:
            FileNotFoundError: if the CSV or an official list is missing.
            ValueError: if the list is unusable or empty, or too many of its clips are missing.
        """
        if self.official is not None:
            missing = self.allow_missing
            return list_official(self.official, self.root, self.annotations, allow_missing=missing, used=used)
        if self.csv is None:
            return merge_labels(scan_tree(self.root))
        listed = read_csv(
            self.csv,
            self.root,
            file_column=self.file_column,
            label_column=self.label_column,
            split_column=self.split_column,
        )
        return merge_labels(listed)

    def file_stats(self, listed: Iterable[ListedClip]) -> list[FileStat]:
        """Stat every listed file; missing and rejected ones give ``NO_FILE``."""
        return [NO_FILE if row.problem else file_stat(self.root, row.path) or NO_FILE for row in listed]

    def digest(self, listed: Iterable[ListedClip], file_stats: Iterable[FileStat], *, version: Any) -> str:
        """Hash the settings, the list, every file's stat, and ``version``."""
        digest = hashlib.sha256(json.dumps([version, str(self.root), self.settings]).encode())
        for row, stats in zip(listed, file_stats, strict=True):
            digest.update(json.dumps([row.path, row.label, row.split, row.problem, *stats]).encode())
        return digest.hexdigest()


def file_stat(root: Path, path: str) -> FileStat | None:
    """Return size and time of a file.

    Returns:
        Size in bytes and time of modification in ns; None if it is no regular file.
    """
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 (a tenth of the time, and there may be 240,000)
    except (OSError, ValueError):  # ValueError: not a valid file name
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
