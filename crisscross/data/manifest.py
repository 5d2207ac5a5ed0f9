"""The manifest: the usable clips of a dataset, what each holds, and the rejected files with the reason.

``build_manifest.py`` builds it once by decoding parts of every file; everything else reads it. Its folder holds:

- ``clips.parquet``: the usable clips. ``rejected.parquet``: the rejected files, with the reason.
- ``manifest.json``: the summary (``manifest_summary.py``): data hash, counts, classes, settings and the hash of the
  inputs. It is written last.
- ``probed.parquet``: what probing found in each file, so that the next build probes only new and changed files.
  ``probed.<k>-of-<n>.parquet``: the same for one share of the files, until a build merges it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from crisscross.data.manifest_summary import check_split, read_summary

READ_ATTEMPTS = 10  # a reader may meet a build halfway: it reads again after READ_INTERVAL_S
READ_INTERVAL_S = 0.2

CLIP_COLUMNS = [
    "clip_id",
    "path",
    "label",
    "label_id",
    "split",
    "video_start_s",
    "video_end_s",
    "audio_start_s",
    "audio_end_s",
    "frame_rate_hz",
    "width",
    "height",
    "audio_rate_hz",
    "size_bytes",
    "mtime_ns",
]
REJECTED_COLUMNS = ["path", "label", "split", "reason"]
HASHED_NUMBERS = ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s", "width", "height")


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset.

    Attributes:
        directory: where the manifest is stored.
        root: the folder to which the clips' paths are relative.
        clips: one row per usable clip, sorted by path, with the columns ``CLIP_COLUMNS``. ``clip_id`` counts from 0,
            ``label_id`` indexes ``classes``, ``split`` holds the clip's splits joined by ``+``; times are seconds, NaN
            where a stream is absent.
        rejected: one row per rejected file, with the columns ``REJECTED_COLUMNS``.
        classes: the labels of the usable clips, sorted.
        data_hash: SHA-256 of the usable clips' paths, sizes, labels, splits, times and frame sizes; it does not depend
            on where the clips lie.
    """

    directory: Path
    root: Path
    clips: pd.DataFrame
    rejected: pd.DataFrame
    classes: list[str]
    data_hash: str

    def split(self, name: str) -> pd.DataFrame:
        """Return the clips of a split, with rows numbered from 0.

        Raises:
            ValueError: if there is no such split.
        """
        memberships = {joined: joined.split("+") for joined in self.clips["split"].unique()}
        check_split(self.directory, name, set(chain.from_iterable(memberships.values())))
        having = [joined for joined, names in memberships.items() if name in names]
        return self.clips[self.clips["split"].isin(having)].reset_index(drop=True)


def read_manifest(directory: str | Path, *, root: str | Path | None = None, check_files: bool = True) -> Manifest:
    """Read a stored manifest.

    Args:
        directory: where it is stored.
        root: where the clips are now; None means where they were at the build.
        check_files: whether to check that every clip still exists.

    Raises:
        FileNotFoundError: if there is no manifest, or clips are missing.
        ValueError: if ``clips.parquet`` and ``manifest.json`` are of different builds.
    """
    directory = Path(directory)
    for attempt in range(READ_ATTEMPTS):
        summary = read_summary(directory)
        clips = pd.read_parquet(directory / "clips.parquet")
        if hash_clips(clips) == summary["fingerprint"]:
            break
        if attempt + 1 < READ_ATTEMPTS:
            time.sleep(READ_INTERVAL_S)
    else:
        raise ValueError(f"clips.parquet and manifest.json of {directory} do not belong together: build it again")
    rejected = pd.read_parquet(directory / "rejected.parquet")
    root = Path(summary["root"] if root is None else root)
    if check_files:
        _check_files(directory, root, clips["path"])
    return Manifest(directory, root, clips, rejected, summary["classes"], summary["fingerprint"])


def hash_clips(clips: pd.DataFrame) -> str:
    """Return the hash of the clips wherever they lie, see ``Manifest.data_hash``."""
    # The times and sizes are those that the random draws depend on, rounded to the precision of a probe.
    extents = [clips[name].fillna(-1).round(3).tolist() for name in HASHED_NUMBERS]
    columns = [*(clips[name].tolist() for name in ("path", "size_bytes", "label", "split")), *extents]
    digest = hashlib.sha256()
    for row in sorted(zip(*columns, strict=True)):
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def check_inside(paths: Iterable[str], *, what: str) -> None:
    """Check that clips lie below their root, as copies require.

    Args:
        paths: of the clips, relative to the root.
        what: the planned operation as a participle, for the message.

    Raises:
        ValueError: if a clip lies outside of its root.
    """
    for path in paths:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(
                f"the clip {path} lies outside of its root and cannot be {what}: give a root that holds all"
            )


def _check_files(directory: Path, root: Path, paths: Iterable[str]) -> None:
    """Check that the clips exist by listing each folder once.

    A stat call per file takes minutes on a cluster's file system.
    """
    names_in: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in names_in:
            try:
                names_in[folder] = {entry.name for entry in (root / folder).iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                names_in[folder] = set()
        if name not in names_in[folder]:
            missing.append(path)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} clips of the manifest {directory} are no longer under {root} ({first}):"
            f" put them back, or build the manifest again"
        )
