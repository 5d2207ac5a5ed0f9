"""The summary of a manifest, ``manifest.json``, and whether the manifest is still up to date.

A launch needs no more than this, so nothing here imports pandas, NumPy or the decoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crisscross.data.file_list import ListedClip
from crisscross.data.source import FileStat, Source

PROBE_VERSION = 3  # raise it when probing judges files differently: stored findings are then dropped
MANIFEST_VERSION = 1  # raise it when the same findings give another manifest: stored manifests are then built again
TABLES = ("clips.parquet", "rejected.parquet")


def read_summary(directory: Path) -> dict[str, Any]:
    """Read ``manifest.json``: data hash, clips by split, reasons of rejection, classes.

    Raises:
        FileNotFoundError: if there is no manifest.
    """
    try:
        return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = f"there is no manifest in {directory}: build one with python -m crisscross.data.prepare"
        raise FileNotFoundError(text) from None


def read_current(directory: str | Path, **options: Any) -> dict[str, Any] | None:
    """Read a stored manifest's summary if it is up to date.

    The settings, the list, and the size and time of every file are compared with those of the last build, and the
    tables with their hashes.

    Args:
        directory: where the manifest is stored.
        **options: the arguments of ``Source.of``.

    Returns:
        What ``read_summary`` returns; None if the manifest must be built.

    Raises:
        FileNotFoundError: if the root or the CSV is missing.
        ValueError: if a setting or the list is wrong.
    """
    directory = Path(directory).absolute()
    source = Source.of(**options)
    try:
        summary = read_summary(directory)
        hashes = {name: hash_bytes((directory / name).read_bytes()) for name in TABLES}
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if summary.get("tables") != hashes:
        return None
    listed = source.list_clips()
    return summary if summary["built_from"] == input_hash(source, listed, source.file_stats(listed)) else None


def input_hash(source: Source, listed: Iterable[ListedClip], file_stats: Iterable[FileStat]) -> str:
    """Hash the input of a manifest and the versions of the code.

    Args:
        source: the settings.
        listed: the files as the dataset lists them.
        file_stats: size and time of each, in the same order.
    """
    return source.digest(listed, file_stats, version=[MANIFEST_VERSION, PROBE_VERSION])


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of the content of a table."""
    return hashlib.sha256(content).hexdigest()


def check_split(directory: Path, name: str, available: Iterable[str]) -> None:
    """Check that a manifest has a split.

    Args:
        directory: where the manifest is stored.
        name: the split.
        available: the splits of the manifest.

    Raises:
        ValueError: if the split is none of them.
    """
    splits = sorted(available)
    if name not in splits:
        raise ValueError(f"the manifest {directory} has no split {name!r}: choose from {', '.join(splits)}")
