"""Build a manifest: list a dataset's files, probe them, and store the usable and the rejected ones.

``python -m crisscross.data.prepare DATASET --root CLIPS`` builds one by hand (``crisscross/data/prepare``).
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from crisscross.data.datasets.matching import NOT_LISTED
from crisscross.data.file_list import ListedClip, assign_splits
from crisscross.data.manifest import CLIP_COLUMNS, REJECTED_COLUMNS, Manifest, hash_clips
from crisscross.data.manifest_summary import PROBE_VERSION, hash_bytes, input_hash
from crisscross.data.probe_files import probe_files
from crisscross.data.source import NO_FILE, FileStat, Source
from crisscross.utils.files import file_lock, write_atomically, write_text

SHARE_NAMES = "probed.*-of-*.parquet"
ProbeCallback = Callable[[int, float], None]


def build_manifest(
    directory: str | Path,
    *,
    jobs: int | None = None,
    progress: bool = True,
    report: ProbeCallback | None = None,
    **options: Any,
) -> Manifest:
    """Probe new and changed clips of a dataset and store its manifest.

    Two processes may build the same manifest at once: the second waits and finds the work done. A killed build
    continues where it stopped, and uses what ``probe_share`` has found.

    Args:
        directory: where to store the manifest.
        jobs: number of processes; None means one per CPU that this process may use.
        progress: whether to show a progress bar on stderr.
        report: called with the number of probed files and the seconds that it took.
        **options: how the clips are listed and which are usable: the arguments of ``Source.of``.

    Raises:
        FileNotFoundError: if the root, the CSV or an official list is missing.
        ValueError: if a setting or the list is wrong, or no clip is usable.
    """
    directory = Path(directory).absolute()
    source = Source.of(**options)
    lists: list[Path] = []
    listed = source.list_clips(lists)
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
        for share in shares:  # probed.parquet now holds their findings
            share.unlink(missing_ok=True)
        usable, rejected = split_usable(listed, probed, source.require)
        usable = assign_splits(usable, test_fraction=source.test_fraction, val_fraction=source.val_fraction)
        file_stats = [NO_FILE if row.problem else _probed_stat(probed[row.path]) for row in listed]
        built_from = input_hash(source, listed, file_stats)
        about = {"lists": [*map(str, lists)], "num_listed": sum(row.problem != NOT_LISTED for row in listed)}
        return _store(directory, source, usable, rejected, probed, built_from, about if lists else {})


def probe_share(
    directory: str | Path,
    *,
    share: tuple[int, int],
    jobs: int | None = None,
    progress: bool = True,
    report: ProbeCallback | None = None,
    **options: Any,
) -> int:
    """Probe one share of a dataset's files into a separate table.

    ``build_manifest`` then has nothing left to probe. A file's share depends on its path alone, so any number of
    processes or array tasks work in parallel, and each may be killed and started again.

    Args:
        directory: where the manifest will be stored.
        share: which share, from 1, and of how many.
        jobs: see ``build_manifest``.
        progress: see ``build_manifest``.
        report: see ``build_manifest``.
        **options: see ``build_manifest``.

    Returns:
        The number of files in the share.

    Raises:
        FileNotFoundError: if the root, the CSV or an official list is missing.
        ValueError: if a setting or the list is wrong.
    """
    number, num_shares = share
    if not 1 <= number <= num_shares:
        raise ValueError(f"share {number}/{num_shares}: expected 1/{num_shares} to {num_shares}/{num_shares}")
    directory = Path(directory).absolute()
    source = Source.of(**options)
    paths = [row.path for row in source.list_clips() if not row.problem]
    mine = [path for path in paths if zlib.crc32(os.fsencode(path)) % num_shares == number - 1]
    directory.mkdir(parents=True, exist_ok=True)
    table = directory / SHARE_NAMES.replace("*", "{}").format(number, num_shares)
    with file_lock(table.with_suffix(".lock")):
        probe_files(
            table,
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


def split_usable(
    listed: Iterable[ListedClip], probed: Mapping[str, Mapping[str, Any]], require: Sequence[str]
) -> tuple[list[ListedClip], list[dict[str, Any]]]:
    """Divide the files into usable and rejected ones, sorted by path.

    Args:
        listed: the files as the dataset lists them.
        probed: what probing found, by path.
        require: the streams that a clip must have.

    Returns:
        The usable files, and the rows of ``rejected.parquet``.
    """
    usable, rejected = [], []
    for row in sorted(listed, key=lambda row: row.path):
        found = probed.get(row.path, {})
        problems = [row.problem or found["problem"]]
        if not problems[0]:
            problems = [found[f"{kind}_problem"] for kind in require if found[f"{kind}_problem"]]
        if any(problems):
            rejected.append({**asdict(row), "split": row.split or "", "reason": "; ".join(problems)})
        else:
            usable.append(row)
    return usable, rejected


def _store(
    directory: Path,
    source: Source,
    usable: list[ListedClip],
    rejected_rows: list[dict[str, Any]],
    probed: dict[str, dict[str, Any]],
    built_from: str,
    about: dict[str, Any],
) -> Manifest:
    """Write the two tables, then the summary, which ``about`` is a part of."""
    rejected = pd.DataFrame(rejected_rows, columns=REJECTED_COLUMNS).astype("str")
    rejected_content = rejected.to_parquet(index=False)
    write_atomically(directory / "rejected.parquet", lambda file: file.write(rejected_content))
    if not usable:
        top = ", ".join(f"{count} x {reason}" for reason, count in Counter(rejected["reason"]).most_common(3))
        raise ValueError(
            f"none of the {len(rejected)} files listed for {source.root} can be used ({top}):"
            f" see {directory / 'rejected.parquet'}, or require fewer streams"
        )
    classes = sorted({row.label for row in usable})
    clips = _clip_table(usable, probed, classes)
    clips_content = clips.to_parquet(index=False)
    data_hash = hash_clips(clips)
    summary = {
        "fingerprint": data_hash,
        "root": str(source.root),
        "num_clips": len(clips),
        "num_rejected": len(rejected),
        "num_by_split": dict(sorted(Counter(chain.from_iterable(clips["split"].str.split("+"))).items())),
        "reasons": dict(Counter(rejected["reason"]).most_common()),
        "classes": classes,
        "settings": source.settings,
        **about,
        "built_from": built_from,
        "tables": {"clips.parquet": hash_bytes(clips_content), "rejected.parquet": hash_bytes(rejected_content)},
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(directory / "clips.parquet", lambda file: file.write(clips_content))
    write_text(directory / "manifest.json", text)
    return Manifest(directory, source.root, clips, rejected, classes, data_hash)


def _clip_table(
    usable: Sequence[ListedClip], probed: Mapping[str, Mapping[str, Any]], classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row per usable clip, with the columns ``CLIP_COLUMNS``."""
    label_ids = {label: number for number, label in enumerate(classes)}
    rows = [
        {**probed[row.path], **asdict(row), "clip_id": clip_id, "label_id": label_ids[row.label]}
        for clip_id, row in enumerate(usable)
    ]
    floats = [name for name in CLIP_COLUMNS if name.endswith(("_s", "_hz"))] + ["width", "height"]
    types = dict.fromkeys(floats, "float64") | dict.fromkeys(["clip_id", "label_id"], "int64")
    return pd.DataFrame(rows, columns=CLIP_COLUMNS).astype(types)


def _probed_stat(found: Mapping[str, Any]) -> FileStat:
    """Return a file's size and time as of its probe."""
    return int(found["size_bytes"]), int(found["mtime_ns"])
