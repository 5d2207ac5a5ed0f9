"""Make a dataset ready before any experiment asks for it, with as many processes as there are.

``python -m crisscross.data.prepare ucf101 --root DIR`` finds the files, says which of the official lists' clips are
missing, probes every file and writes the manifest where experiments look for it (``catalogue.manifest_directory``).
Started again it goes on where it was. With ``--share 2/5`` it probes the second of five shares of the files alone; a
last call without ``--share`` gathers what the shares have found. Then ``--compact DIR`` makes a compact training copy
(``compact.py``) and ``--shards`` packs tar files for ``data.stage`` (``shards.py``), in shares too, if asked.

Exit codes: 0 done; 1 it failed on the way; 2 a setting, a list or the dataset is not as it should be and nothing was
done; 130 and 143 it was stopped, and what it found is kept.
"""

from __future__ import annotations

import argparse
import csv as csv_format
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.datasets import DATASETS
from crisscross.data.catalog import make_writable, manifest_directory, source_options
from crisscross.data.datasets.matching import MISSING, missing_by_split, named
from crisscross.data.file_list import ListedClip
from crisscross.data.prepare.compact_encode import CompactSettings
from crisscross.data.shards import DEFAULT_SHARD_BYTES
from crisscross.data.source import STREAMS, Source
from crisscross.utils.files import write_text

MISSING_TABLE = "missing.csv"
_COPY_KEYS = {"short_side_px": "short_side", "key_frame_every": "key_frame_every", "crf": "crf"}

_KEYS = (
    *("root", "annotations", "manifest_root", "require", "thorough", "csv", "file_column", "label_column"),
    *("split_column", "test_fraction", "name"),
)

STOPPED = "stopped: what was found is kept, the same command goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a dataset from the command line, say what is in it, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        share = None if options.share is None else parse_share(options.share, os.environ)
        settings = _settings(options)
        compact_settings(options)
        directory = manifest_directory(settings)
        make_writable(directory, key="data.manifest_root")
        _find(settings, directory)
    except (ValueError, OSError) as error:
        return _tell(error, 2)
    try:
        with _Stoppable():
            if share is not None and not are_asked_for(options):
                return _probe_share(settings, directory, share, options.jobs)
            if share is None:
                _build(settings, directory, options.jobs)
            else:
                _check_built(settings, directory)
            if are_asked_for(options):
                make_copies(settings, directory, options, share)
    except (ValueError, OSError, RuntimeError) as error:
        return _tell(error, 1)
    except KeyboardInterrupt:
        return _tell(STOPPED, 130)
    return 0


def parse_share(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return which share of the files to probe, counted from 1, and of how many.

    Args:
        text: ``"2/5"``, or ``"slurm"`` for the place of this task in its Slurm job array.
        environment: the environment variables.

    Raises:
        ValueError: there is no such share.
    """
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        if any(not environment.get(name, "").isdigit() for name in names):
            raise ValueError("--share slurm: this is no task of a Slurm job array: submit it with --array=1-N")
        task, first, count = (int(environment[name]) for name in names)
        share = task - first + 1, count
    else:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found:
            raise ValueError(f"--share {text}: expected K/N such as 2/5, or slurm")
        share = int(found[1]), int(found[2])
    if not 1 <= share[0] <= share[1]:
        remedy = "number the tasks without gaps, --array=1-N" if text == "slurm" else "count from 1"
        raise ValueError(f"--share {text}: share {share[0]} of {share[1]} does not exist: {remedy}")
    return share


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crisscross.data.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", choices=[*DATASETS, "folder"], help="folder: clips of your own, a tree or a CSV")
    parser.add_argument("--root", help="the folder of the clips")
    parser.add_argument("--annotations", help="the folder (or file) of the official lists; default: under the root")
    parser.add_argument("--manifest-root", default="data/manifests", help="where manifests are stored")
    parser.add_argument("--allow-missing", action="store_true", help="go on though much of the dataset is missing")
    parser.add_argument("--require", nargs="+", choices=STREAMS, help="the streams that each clip must have")
    parser.add_argument("--thorough", action="store_true", help="decode every file whole")
    parser.add_argument("--jobs", type=_positive, help="processes; default: one a CPU that this process may use")
    parser.add_argument("--share", help="K/N: probe the K-th of N shares alone; slurm: the share of this array task")
    add_options(parser)
    own = parser.add_argument_group("clips of your own (folder)")
    own.add_argument("--name", help="what the tables call the dataset")
    own.add_argument("--csv", help="a list of the clips")
    own.add_argument("--file-column")
    own.add_argument("--label-column")
    own.add_argument("--split-column", help="'null': hold out a part of each class")
    own.add_argument("--test-fraction", type=float)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return int(text)


def _settings(options: argparse.Namespace) -> DataSettings:
    """Return what ``data=<dataset>`` and the same choices give an experiment."""
    known = DATASETS.get(options.dataset)
    keys = ("annotations", "require", "csv", "file_column", "label_column", "split_column", "test_fraction")
    given: dict[str, Any] = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    if given.get("split_column") == "null":
        given["split_column"] = None
    if known:
        given = {"require": known.require, "folds": known.folds, **given}
    train, test = known.splits if known else ("train", "test")
    data = {
        "name": options.name or options.dataset,
        "kind": options.dataset,
        "root": options.root,
        "train_split": train,
        "test_split": test,
        "fingerprint": None,
        "manifest_root": options.manifest_root,
        "allow_missing": options.allow_missing,
        "thorough": options.thorough,
    }
    return parse(DataSettings, {**data, **given})


def _find(settings: DataSettings, directory: Path) -> None:
    """Say what there is, and stop where too much is missing."""
    options = source_options(settings)
    source = Source.of(**options)
    if not settings.is_official:
        num_files = len(source.list_clips())
        print(f"{settings.name}: {num_files} files are listed for {source.root}")
        return
    listed = Source.of(**{**options, "allow_missing": True}).list_clips()
    missing = [row for row in listed if row.problem == MISSING]
    num_listed = len(missing) + sum(not row.problem for row in listed)
    print(f"{settings.name}: {len(missing)} of {num_listed} listed clips are missing under {source.root}")
    for split, (num_missing, total) in missing_by_split(listed).items():
        first = named([row.path for row in missing if split in (row.split or "").split("+")])
        print(f"  {split:<8} {num_missing:>7} of {total:>7} missing" + (f": {first}" if first else ""))
    others = [row for row in listed if row.problem not in ("", MISSING)]
    if others:
        print(f"  {len(others)} more files or rows cannot be used ({others[0].path}: {others[0].problem})")
    _write_missing(directory / MISSING_TABLE, missing)
    if not settings.allow_missing:
        source.list_clips()  # raises where too much is missing


def _write_missing(path: Path, missing: Sequence[ListedClip]) -> None:
    if not missing:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    rows = csv_format.writer(text)
    rows.writerow(("path", "label", "split"))
    rows.writerows((row.path, row.label, row.split) for row in missing)
    write_text(path, text.getvalue())
    print(f"  all of them: {os.path.relpath(path)}")


def _probe_share(settings: DataSettings, directory: Path, share: tuple[int, int], jobs: int | None) -> int:
    from crisscross.data.manifest import probe_share

    num_files = probe_share(directory, share=share, jobs=jobs, report=_say_rate, **source_options(settings))
    print(f"share {share[0]} of {share[1]}: {num_files} files; a call without --share gathers all shares")
    return 0


def _check_built(settings: DataSettings, directory: Path) -> None:
    """Make sure that there is a manifest to copy from: tasks that share the copying must not all build it."""
    from crisscross.data.manifest import read_current

    if read_current(directory, **source_options(settings)) is None:
        raise ValueError("--share: the manifest is not built yet: run it without --share, --compact and --shards first")


def _build(settings: DataSettings, directory: Path, jobs: int | None) -> None:
    from crisscross.data.manifest import build_manifest, read_summary

    build_manifest(directory, jobs=jobs, report=_say_rate, **source_options(settings))
    found = read_summary(directory)
    splits = ", ".join(f"{count} {name}" for name, count in found["num_by_split"].items())
    print(f"{found['num_clips']} clips of {len(found['classes'])} classes ({splits})")
    print(f"{found['num_rejected']} rejected")
    for reason, count in found["reasons"].items():
        print(f"  {count:6d}  {reason}")
    print(f"tables: {os.path.relpath(directory)}/clips.parquet, rejected.parquet")


def _say_rate(num_files: int, seconds: float) -> None:
    rate = f" ({num_files / seconds:.1f} files/s)" if num_files and seconds else ""
    print(f"probed {num_files} files in {seconds:.1f} s{rate}")


def _tell(error: Exception | str, code: int) -> int:
    text = f"error: {in_flags(' '.join(str(error).split()))}" if isinstance(error, Exception) else error
    print(text, file=sys.stderr)
    return code


def in_flags(text: str) -> str:
    """Return a complaint about settings in the words of this command line: ``--root DIR`` for ``data.root=DIR``."""
    text = text.replace("data.annotations=null: ", "").replace("set data.", "give data.")
    text = text.replace("data.allow_missing=true", "--allow-missing")
    text = re.sub(r"\bdata\.require=\[([a-z,]+)\]", lambda found: f"--require {found[1].replace(',', ' ')}", text)
    text = re.sub(r"\bdata=(\w+)", r"\1", text)
    copies_too = rf"{'|'.join(_COPY_KEYS)}(?==)"
    found = re.compile(rf"(?:\bdata\.({'|'.join(_KEYS)})\b|(?:^|(?<=[ ;]))({'|'.join(_KEYS)}(?==)|{copies_too}))(=?)")
    return found.sub(lambda one: _flag(one[1] or one[2]) + (" " if one[3] else ""), text)


def _flag(key: str) -> str:
    return f"--{_COPY_KEYS.get(key, key).replace('_', '-')}"


class _Stoppable:
    """Turns SIGTERM, which Slurm sends when time is up, into an exit that keeps what was found."""

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_tell(STOPPED, 128 + number)))

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for copies to a parser."""
    group = parser.add_argument_group("copies, once the manifest is built (--share then shares them out)")
    group.add_argument("--compact", metavar="DIR", help="make a compact training copy there")
    group.add_argument("--short-side", type=int, help="pixels of its pictures, even; default: 128")
    group.add_argument("--key-frame-every", type=int, help="pictures from one key frame to the next; default: 12")
    group.add_argument("--crf", type=int, help="x264's quality of its pictures, lower is better; default: 20")
    group.add_argument(
        "--shards",
        metavar="DIR",
        nargs="?",
        const="",
        help="pack the clips, those of the compact copy if there is one, into tar files there; default: ROOT/shards",
    )
    group.add_argument("--shard-mb", type=float, default=DEFAULT_SHARD_BYTES / 1e6, help="default: 1000")


def are_asked_for(options: argparse.Namespace) -> bool:
    """Whether copies are to be made."""
    return options.compact is not None or options.shards is not None


def compact_settings(options: argparse.Namespace) -> CompactSettings:
    """Return what the compact copy is like.

    Raises:
        ValueError: a value that no copy can have, or one without ``--compact``.
    """
    keys = {"short_side": "short_side_px", "key_frame_every": "key_frame_every", "crf": "crf"}
    given = {name: getattr(options, key) for key, name in keys.items() if getattr(options, key) is not None}
    if given and options.compact is None:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key, name in keys.items() if name in given)
        raise ValueError(f"{flags}: only a compact copy has such a thing: add --compact DIR")
    if not options.shard_mb > 0:
        raise ValueError(f"--shard-mb {options.shard_mb}: expected the size of a shard in MB, such as 1000")
    return CompactSettings(**given)


def make_copies(
    settings: DataSettings, directory: Path, options: argparse.Namespace, share: tuple[int, int] | None
) -> None:
    """Make the compact copy and the shards that are asked for, and say how they stand.

    Args:
        settings: the dataset.
        directory: of its manifest, which must be built.
        options: of the command line.
        share: (k, n): make the k-th of n parts; None means all.

    Raises:
        ValueError: a setting is wrong, a folder holds something else, or no clip can be copied.
        OSError: a folder cannot be written, or is full.
    """
    from crisscross.data import shards
    from crisscross.data.manifest import read_manifest
    from crisscross.data.prepare import compact

    manifest = read_manifest(directory)
    share = share or (1, 1)
    root, paths = manifest.root, manifest.clips["path"].tolist()
    if options.compact is not None:
        report = compact.run(manifest, options.compact, compact_settings(options), jobs=options.jobs, share=share)
        print(f"compact copy: {report}")
        if not report.is_complete:
            print("call again, or wait for the other shares; the last one to end makes the copy a dataset")
            return
        if report.failures:
            print(f"  those left out: {report.target / 'failures.csv'}")
        root, paths = report.target, None
        print(f"  to use it: {_use(settings)}data.csv={report.target / 'clips.csv'}")
    if options.shards is not None:
        packed = shards.pack(
            root, options.shards or None, paths=paths, shard_bytes=int(options.shard_mb * 1e6), share=share
        )
        print(f"shards: {packed}")
        elsewhere = "" if packed.target == root / shards.DEFAULT_FOLDER else f" data.shards={packed.target}"
        print(f"  to use them: data.stage=auto{elsewhere}")


def _use(settings: DataSettings) -> str:
    return f"data={settings.kind} data.kind=folder +" if settings.is_official else "data=folder "


if __name__ == "__main__":
    raise SystemExit(main())
