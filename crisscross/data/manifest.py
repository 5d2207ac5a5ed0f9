"""The manifest: which clips of a dataset can be used, what each holds, and which cannot be used and why.

Built once for a dataset, by decoding parts of every file; read by everything else. In its folder:

- ``clips.parquet``: the good clips. ``rejected.parquet``: the others, with the reason.
- ``manifest.json``: fingerprint, counts, classes, settings, and what it was built from; written last.
- ``probed.parquet``: what probing found for each file, so that a rebuild probes only what is new or changed.
  ``probed.<k>-of-<n>.parquet``: the same of one share of the files, until a build takes it over.

A launch asks ``read_current`` first: where nothing has changed, nothing is built and neither pandas nor the decoder
imported.

``python -m crisscross.data.prepare DATASET --root CLIPS`` builds one by hand (``crisscross/data/prepare``).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisscross.data.file_list import ListedClip, assign_splits
from crisscross.data.source import NO_FILE, FileStat, Source
from crisscross.utils.files import file_lock, write_atomically, write_text

if TYPE_CHECKING:
    import pandas as pd
from collections.abc import Mapping, Sequence
from dataclasses import asdict

PROBE_VERSION = 1  # raise it when probing changes its mind about files: old findings are then dropped
MANIFEST_VERSION = 1  # raise it when the same findings would give another manifest: stored ones are then built again
SHARE_NAMES = "probed.*-of-*.parquet"
READ_ATTEMPTS = 10  # a reader may meet a rebuild half-way: it looks again after a fifth of a second
TABLES = ("clips.parquet", "rejected.parquet")
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset.

    Attributes:
        directory: where the manifest is stored.
        root: the folder to which the clips' paths are relative.
        clips: one row a good clip, sorted by path, with the columns of ``manifest_tables.CLIP_COLUMNS``: ``clip_id``
            counts from 0, ``label_id`` is the place in ``classes``, ``split`` holds the splits that it belongs to,
            joined by ``+``; times are seconds, NaN where a stream is absent.
        rejected: one row a clip that is left out: path, label, split, reason.
        classes: the labels of the good clips, sorted.
        fingerprint: SHA-256 of the good clips' paths, sizes, labels, splits, times and picture sizes; the same
            wherever the clips lie.
    """

    directory: Path
    root: Path
    clips: pd.DataFrame
    rejected: pd.DataFrame
    classes: list[str]
    fingerprint: str

    def split(self, name: str) -> pd.DataFrame:
        """Return the clips that belong to a split, alone or among others, with rows numbered from 0.

        Raises:
            ValueError: there is no such split.
        """
        memberships = {joined: joined.split("+") for joined in self.clips["split"].unique()}
        check_split(self.directory, name, set(chain.from_iterable(memberships.values())))
        having = [joined for joined, names in memberships.items() if name in names]
        return self.clips[self.clips["split"].isin(having)].reset_index(drop=True)


def build_manifest(
    directory: str | Path,
    *,
    jobs: int | None = None,
    progress: bool = True,
    report: Report | None = None,
    **options: Any,
) -> Manifest:
    """Find the clips of a dataset, probe those that are new or changed, and store what was found.

    Two processes may build the same manifest at once: the second waits and finds the work done. A build that is
    killed goes on where it was, and uses what ``probe_share`` has found.

    Args:
        directory: where to store the manifest.
        jobs: processes; None means one a CPU that this process may use.
        progress: whether to show a progress bar on stderr.
        report: told how many files were probed, and in how many seconds.
        **options: where the clips are listed and what is asked of them: the arguments of ``Source.of``.

    Raises:
        FileNotFoundError: the root, the CSV or an official list is missing.
        ValueError: a setting or the list is wrong, or no clip is usable.
    """
    from crisscross.data.probe_files import probe_files  # and with it the decoder

    directory = Path(directory).absolute()
    source = Source.of(**options)
    listed = source.list_clips()
    directory.mkdir(parents=True, exist_ok=True)
    with file_lock(directory / "manifest.lock"):
        shares = sorted(directory.glob(SHARE_NAMES))
        probed = probe_files(
            directory / "probed.parquet",
            source.root,
            [row.path for row in listed if not row.problem],
            version=PROBE_VERSION,
            thorough=source.thorough,
            jobs=jobs,
            progress=progress,
            others=shares,
            report=report,
        )
        for share in shares:  # whose findings are in probed.parquet now
            share.unlink(missing_ok=True)
        good, rejected = judge(listed, probed, source.require)
        good = assign_splits(good, test_fraction=source.test_fraction)
        stamps = [NO_FILE if row.problem else _stamp(probed[row.path]) for row in listed]  # as they were when probed
        built_from = source.digest(listed, stamps, version=[MANIFEST_VERSION, PROBE_VERSION])
        return _store(directory, source, good, rejected, probed, built_from)


def probe_share(
    directory: str | Path,
    *,
    share: tuple[int, int],
    jobs: int | None = None,
    progress: bool = True,
    report: Report | None = None,
    **options: Any,
) -> int:
    """Probe one share of a dataset's files into a table of its own; ``build_manifest`` then has nothing left to probe.

    Which share a file belongs to depends on its path alone, so that any number of processes or array tasks work side
    by side, and each may be killed and started again.

    Args:
        directory: where the manifest will be stored.
        share: which share, from 1, and of how many.
        jobs: as of ``build_manifest``.
        progress: likewise.
        report: likewise.
        **options: likewise.

    Returns:
        How many files the share has.

    Raises:
        FileNotFoundError: the root, the CSV or an official list is missing.
        ValueError: a setting or the list is wrong.
    """
    from crisscross.data.probe_files import probe_files

    number, num_shares = share
    if not 1 <= number <= num_shares:
        raise ValueError(f"share {number}/{num_shares}: expected 1/{num_shares} to {num_shares}/{num_shares}")
    directory = Path(directory).absolute()
    source = Source.of(**options)
    paths = [row.path for row in source.list_clips() if not row.problem]
    mine = [path for path in paths if zlib.crc32(os.fsencode(path)) % num_shares == number - 1]
    directory.mkdir(parents=True, exist_ok=True)
    memory = directory / SHARE_NAMES.replace("*", "{}").format(number, num_shares)
    with file_lock(memory.with_suffix(".lock")):
        probe_files(
            memory,
            source.root,
            mine,
            version=PROBE_VERSION,
            thorough=source.thorough,
            jobs=jobs,
            progress=progress,
            others=[directory / "probed.parquet"],
            report=report,
        )
    return len(mine)


def read_current(directory: str | Path, **options: Any) -> dict[str, Any] | None:
    """Look whether a stored manifest is what building it would give, without importing what building needs.

    Settings, list, and size and time of every file are compared with those that it was built from, and its tables with
    their hashes.

    Args:
        directory: where it is stored.
        **options: as of ``build_manifest``, less ``jobs`` and ``progress``.

    Returns:
        What ``read_summary`` returns; None when the manifest has to be built.

    Raises:
        FileNotFoundError: the root or the CSV is missing.
        ValueError: a setting or the list is wrong.
    """
    directory = Path(directory).absolute()
    source = Source.of(**options)
    try:
        summary = read_summary(directory)
        hashes = {name: _hash((directory / name).read_bytes()) for name in TABLES}
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if summary.get("tables") != hashes:
        return None
    listed = source.list_clips()
    built_from = source.digest(listed, source.stamps(listed), version=[MANIFEST_VERSION, PROBE_VERSION])
    return summary if summary["built_from"] == built_from else None


def read_manifest(directory: str | Path, *, root: str | Path | None = None, check_files: bool = True) -> Manifest:
    """Read a stored manifest.

    Args:
        directory: where it is stored.
        root: where the clips are now, if not where they were when it was built.
        check_files: make sure that every clip is still there.

    Raises:
        FileNotFoundError: there is no manifest, or clips are gone.
        ValueError: its files do not belong together.
    """
    import pandas as pd

    directory = Path(directory)
    for attempt in range(READ_ATTEMPTS):
        summary = read_summary(directory)
        clips = pd.read_parquet(directory / "clips.parquet")
        if fingerprint(clips) == summary["fingerprint"]:
            break
        if attempt + 1 < READ_ATTEMPTS:
            time.sleep(0.2)
    else:
        raise ValueError(f"clips.parquet and manifest.json of {directory} do not belong together: build it again")
    rejected = pd.read_parquet(directory / "rejected.parquet")
    root = Path(summary["root"] if root is None else root)
    if check_files:
        _check_files(directory, root, clips["path"])
    return Manifest(directory, root, clips, rejected, summary["classes"], summary["fingerprint"])


def read_fingerprint(directory: str | Path) -> str:
    """Return a stored manifest's fingerprint without reading the manifest.

    Raises:
        FileNotFoundError: there is no manifest.
    """
    return read_summary(Path(directory))["fingerprint"]


def check_split(directory: Path, name: str, there: Iterable[str]) -> None:
    """Make sure that a manifest has a split.

    Args:
        directory: where the manifest is stored.
        name: the split.
        there: the splits that the manifest has.

    Raises:
        ValueError: it has not.
    """
    splits = sorted(there)
    if name not in splits:
        raise ValueError(f"the manifest {directory} has no split {name!r}: choose from {', '.join(splits)}")


def check_inside(paths: Iterable[str], *, what: str) -> None:
    """Make sure that clips lie below their root, so that they can have the same relative paths elsewhere.

    Args:
        paths: of the clips, relative to the root.
        what: what is to be done with them, for the message.

    Raises:
        ValueError: one does not.
    """
    for path in paths:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(
                f"the clip {path} lies outside of its root and cannot be {what}: give a root that holds all"
            )


def _store(
    directory: Path,
    source: Source,
    good: list[ListedClip],
    rejected_rows: list[dict[str, Any]],
    probed: dict[str, dict[str, Any]],
    built_from: str,
) -> Manifest:
    rejected = rejected_table(rejected_rows)
    rejected_content = rejected.to_parquet(index=False)
    write_atomically(directory / "rejected.parquet", lambda file: file.write(rejected_content))
    if not good:
        top = ", ".join(f"{count} x {reason}" for reason, count in Counter(rejected["reason"]).most_common(3))
        raise ValueError(
            f"none of the {len(rejected)} files listed for {source.root} can be used ({top}):"
            f" see {directory / 'rejected.parquet'}, or require fewer streams"
        )
    classes = sorted({row.label for row in good})
    clips = clip_table(good, probed, classes)
    clips_content = clips.to_parquet(index=False)
    data_hash = fingerprint(clips)
    summary = {
        "fingerprint": data_hash,
        "root": str(source.root),
        "num_clips": len(clips),
        "num_rejected": len(rejected),
        "num_by_split": dict(sorted(Counter(chain.from_iterable(clips["split"].str.split("+"))).items())),
        "reasons": dict(Counter(rejected["reason"]).most_common()),
        "classes": classes,
        "settings": source.settings,
        "built_from": built_from,
        "tables": {"clips.parquet": _hash(clips_content), "rejected.parquet": _hash(rejected_content)},
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(directory / "clips.parquet", lambda file: file.write(clips_content))
    write_text(directory / "manifest.json", text)
    return Manifest(directory, source.root, clips, rejected, classes, data_hash)


def _stamp(found: dict[str, Any]) -> FileStat:
    return int(found["size_bytes"]), int(found["mtime_ns"])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_summary(directory: Path) -> dict[str, Any]:
    """Return what ``manifest.json`` says: fingerprint, numbers of clips by split, reasons of rejection, classes.

    Raises:
        FileNotFoundError: there is no manifest.
    """
    try:
        return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = f"there is no manifest in {directory}: build one with python -m crisscross.data.prepare"
        raise FileNotFoundError(text) from None


def _check_files(directory: Path, root: Path, paths: Iterable[str]) -> None:
    """Look into each folder once: a look at every file takes minutes on a cluster's file system."""
    there: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in there:
            try:
                there[folder] = {entry.name for entry in (root / folder).iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                there[folder] = set()
        if name not in there[folder]:
            missing.append(path)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} clips of the manifest {directory} are no longer under {root} ({first}):"
            f" put them back, or build the manifest again"
        )


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
FINGERPRINTED_NUMBERS = ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s", "width", "height")


def judge(
    listed: Iterable[ListedClip], probed: dict[str, dict[str, Any]], require: Sequence[str]
) -> tuple[list[ListedClip], list[dict[str, Any]]]:
    """Part the files into usable ones and rejected ones with the reason, both sorted by path.

    Args:
        listed: the files as the dataset lists them.
        probed: what probing found for each path.
        require: the streams that a clip must have.
    """
    good, rejected = [], []
    for row in sorted(listed, key=lambda row: row.path):
        found = probed.get(row.path, {})
        problems = [row.problem or found["problem"]]
        if not problems[0]:
            problems = [found[f"{kind}_problem"] for kind in require if found[f"{kind}_problem"]]
        if any(problems):
            rejected.append({**asdict(row), "split": row.split or "", "reason": "; ".join(problems)})
        else:
            good.append(row)
    return good, rejected


def clip_table(
    good: Sequence[ListedClip], probed: Mapping[str, Mapping[str, Any]], classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row a good clip, with the columns of ``CLIP_COLUMNS``."""
    import pandas as pd

    label_ids = {label: number for number, label in enumerate(classes)}
    rows = [
        {**probed[row.path], **asdict(row), "clip_id": clip_id, "label_id": label_ids[row.label]}
        for clip_id, row in enumerate(good)
    ]
    floats = [name for name in CLIP_COLUMNS if name.endswith(("_s", "_hz"))] + ["width", "height"]
    types = dict.fromkeys(floats, "float64") | dict.fromkeys(["clip_id", "label_id"], "int64")
    return pd.DataFrame(rows, columns=CLIP_COLUMNS).astype(types)


def rejected_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a clip that is left out, with the columns of ``REJECTED_COLUMNS``."""
    import pandas as pd

    return pd.DataFrame(rows, columns=REJECTED_COLUMNS).astype("str")


def fingerprint(clips: pd.DataFrame) -> str:
    """Return the hash of what the clips are, wherever they lie, as ``Manifest.fingerprint`` says."""
    # What a clip is, and where it may be cut: the times and sizes that the draws depend on, as far as a probe is exact.
    extents = [clips[name].fillna(-1).round(3).tolist() for name in FINGERPRINTED_NUMBERS]
    columns = [*(clips[name].tolist() for name in ("path", "size_bytes", "label", "split")), *extents]
    digest = hashlib.sha256()
    for row in sorted(zip(*columns, strict=True)):
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()
