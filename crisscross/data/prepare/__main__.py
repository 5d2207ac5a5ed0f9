"""Prepare a dataset before the first experiment, on all cores.

``python -m crisscross.data.prepare ucf101 --root DIR`` finds the files, prints which clips of the official lists are
missing, probes every file and writes the manifest to the folder that experiments read
(``catalog.manifest_directory``). A second call continues where the first one stopped. ``--share 2/5`` only probes the
second of five shares of the files; a last call without ``--share`` gathers the findings of all shares. Then
``--compact DIR`` makes a compact training copy (``compact.py``), in shares as well.

Exit codes: 0 = done; 1 = failed on the way; 2 = a setting, a list or the dataset is wrong and nothing was done; 130 and
143 = stopped, all findings are kept.
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
from typing import Any, NoReturn

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.datasets import DATASETS
from crisscross.data.build_manifest import build_manifest, probe_share
from crisscross.data.catalog import lists_text, make_writable, manifest_directory, source_options
from crisscross.data.datasets.matching import MISSING, first_names, missing_by_split
from crisscross.data.file_list import ListedClip
from crisscross.data.manifest import read_manifest
from crisscross.data.manifest_summary import read_current, read_summary
from crisscross.data.prepare import compact
from crisscross.data.prepare.compact_encode import CompactSettings
from crisscross.data.source import STREAMS, Source
from crisscross.utils.files import write_text
from crisscross.utils.terminal import print_what_can_be_printed

MISSING_TABLE = "missing.csv"
_COPY_KEYS = {"short_side_px": "short_side", "key_frame_every": "key_frame_every", "crf": "crf"}

_KEYS = (
    *("root", "annotations", "manifest_root", "require", "thorough", "csv", "file_column", "label_column"),
    *("split_column", "test_fraction", "val_fraction", "name"),
)

STOPPED = "stopped: all findings are kept, the same command continues"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a dataset from the command line and return the exit code."""
    print_what_can_be_printed()
    options = _parser().parse_args(arguments)
    try:
        share = None if options.share is None else parse_share(options.share, os.environ)
        settings = _settings(options)
        compact_settings(options)
        directory = manifest_directory(settings)
        make_writable(directory, key="data.manifest_root")
        _find(settings, directory)
    except (ValueError, OSError) as error:
        return _print_error(error, 2)
    try:
        with _StopOnSigterm():
            if share is not None and options.compact is None:
                return _probe_share(settings, directory, share, options.jobs)
            if share is None:
                _build(settings, directory, options.jobs)
            else:
                _check_built(settings, directory)
            if options.compact is not None:
                make_compact_copy(settings, directory, options, share)
    except (ValueError, OSError, RuntimeError) as error:
        return _print_error(error, 1)
    except KeyboardInterrupt:
        return _print_error(STOPPED, 130)
    return 0


def parse_share(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return which share of the files to probe.

    Args:
        text: ``"2/5"``, or ``"slurm"`` for the index of this task in its Slurm job array.
        environment: the environment variables.

    Returns:
        The share, counted from 1, and the number of shares.

    Raises:
        ValueError: if there is no such share.
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
    parser.add_argument("dataset", choices=[*DATASETS, "folder"], help="folder: your own clips, a tree or a CSV")
    parser.add_argument("--root", help="the folder of the clips")
    parser.add_argument("--annotations", help="the folder (or file) of the official lists; default: under the root")
    parser.add_argument("--manifest-root", default="data/manifests", help="folder of the manifests")
    parser.add_argument("--allow-missing", action="store_true", help="continue if much of the dataset is missing")
    parser.add_argument("--require", nargs="+", choices=STREAMS, help="streams that each clip must have")
    parser.add_argument("--thorough", action="store_true", help="decode every file completely")
    parser.add_argument("--jobs", type=_positive, help="processes; default: one per usable core")
    parser.add_argument("--share", help="K/N: only probe the K-th of N shares; slurm: the share of this array task")
    add_options(parser)
    own = parser.add_argument_group("your own clips (folder)")
    own.add_argument("--name", help="name of the dataset in the tables")
    own.add_argument("--csv", help="a list of the clips")
    own.add_argument("--file-column")
    own.add_argument("--label-column")
    own.add_argument("--split-column", help="'null': hold out a part of each class")
    own.add_argument("--test-fraction", type=float)
    own.add_argument("--val-fraction", type=float, help="hold out this part as the split val, too")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return int(text)


def _settings(options: argparse.Namespace) -> DataSettings:
    """Return the settings that ``data=<dataset>`` gives an experiment."""
    known = DATASETS.get(options.dataset)
    columns = ("file_column", "label_column", "split_column")
    keys = ("annotations", "require", "csv", *columns, "test_fraction", "val_fraction")
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
    """Print which clips exist; raise if too many are missing."""
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
        first = first_names([row.path for row in missing if split in (row.split or "").split("+")])
        print(f"  {split:<8} {num_missing:>7} of {total:>7} missing" + (f": {first}" if first else ""))
    others = [row for row in listed if row.problem not in ("", MISSING)]
    if others:
        print(f"  {len(others)} more files or rows cannot be used ({others[0].path}: {others[0].problem})")
    _write_missing(directory / MISSING_TABLE, missing)
    if not settings.allow_missing:
        source.list_clips()  # raises if too many are missing


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
    num_files = probe_share(directory, share=share, jobs=jobs, report=_print_rate, **source_options(settings))
    print(f"share {share[0]} of {share[1]}: {num_files} files; a call without --share gathers all shares")
    return 0


def _check_built(settings: DataSettings, directory: Path) -> None:
    """Check that the manifest is built.

    Tasks that share the copying must not all build it.

    Raises:
        ValueError: if it is not built.
    """
    if read_current(directory, **source_options(settings)) is None:
        raise ValueError("--share: the manifest is not built yet: run it without --share and --compact first")


def _build(settings: DataSettings, directory: Path, jobs: int | None) -> None:
    build_manifest(directory, jobs=jobs, report=_print_rate, **source_options(settings))
    found = read_summary(directory)
    splits = ", ".join(f"{count} {name}" for name, count in found["num_by_split"].items())
    print(f"{found['num_clips']} clips of {len(found['classes'])} classes ({splits})")
    if lists := lists_text(settings.kind, found):
        print(lists)
    print(f"{found['num_rejected']} rejected")
    for reason, count in found["reasons"].items():
        print(f"  {count:6d}  {reason}")
    print(f"tables: {os.path.relpath(directory)}/clips.parquet, rejected.parquet")


def _print_rate(num_files: int, seconds: float) -> None:
    rate = f" ({num_files / seconds:.1f} files/s)" if num_files and seconds else ""
    print(f"probed {num_files} files in {seconds:.1f} s{rate}")


def _print_error(error: Exception | str, code: int) -> int:
    text = f"error: {in_flags(' '.join(str(error).split()))}" if isinstance(error, Exception) else error
    print(text, file=sys.stderr)
    return code


def in_flags(text: str) -> str:
    """Return an error text with flags for config keys.

    For example, ``--root DIR`` replaces ``data.root=DIR``.
    """
    text = text.replace("data.annotations=null: ", "").replace("set data.", "give data.")
    text = text.replace("data.allow_missing=true", "--allow-missing")
    text = re.sub(r"\bdata\.require=\[([a-z,]+)\]", lambda found: f"--require {found[1].replace(',', ' ')}", text)
    text = re.sub(r"\bdata=(\w+)", r"\1", text)
    copies_too = rf"{'|'.join(_COPY_KEYS)}(?==)"
    found = re.compile(rf"(?:\bdata\.({'|'.join(_KEYS)})\b|(?:^|(?<=[ ;]))({'|'.join(_KEYS)}(?==)|{copies_too}))(=?)")
    return found.sub(lambda one: _flag(one[1] or one[2]) + (" " if one[3] else ""), text)


def _flag(key: str) -> str:
    return f"--{_COPY_KEYS.get(key, key).replace('_', '-')}"


def _exit_stopped(number: int, frame: object) -> NoReturn:
    sys.exit(_print_error(STOPPED, 128 + number))


class _StopOnSigterm:
    """Context in which SIGTERM causes an exit that keeps the findings.

    Slurm sends this signal.
    """

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _exit_stopped)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the compact copy to a parser."""
    group = parser.add_argument_group("compact copy, once the manifest is built (--share then splits the copying)")
    group.add_argument("--compact", metavar="DIR", help="make a compact training copy there")
    group.add_argument("--short-side", type=int, help="shorter side of its frames in pixels, even; default: 128")
    group.add_argument("--key-frame-every", type=int, help="frames from one key frame to the next; default: 12")
    group.add_argument("--crf", type=int, help="x264's quality of its frames, lower is better; default: 20")


def compact_settings(options: argparse.Namespace) -> CompactSettings:
    """Return size and quality of the compact copy.

    Raises:
        ValueError: if a value is outside its range, or ``--compact`` is missing.
    """
    keys = {"short_side": "short_side_px", "key_frame_every": "key_frame_every", "crf": "crf"}
    given = {name: getattr(options, key) for key, name in keys.items() if getattr(options, key) is not None}
    if given and options.compact is None:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key, name in keys.items() if name in given)
        raise ValueError(f"{flags}: only a compact copy has this setting: add --compact DIR")
    return CompactSettings(**given)


def make_compact_copy(
    settings: DataSettings, directory: Path, options: argparse.Namespace, share: tuple[int, int] | None
) -> None:
    """Make the compact copy and print its status.

    Args:
        settings: the dataset.
        directory: folder of its manifest, which must exist.
        options: the command line's.
        share: (k, n): make the k-th of n parts; None = all.

    Raises:
        ValueError: if a setting is wrong, the folder holds something else, or no clip can be copied.
        OSError: if the folder cannot be written, or is full.
    """
    manifest = read_manifest(directory)
    made = compact.run(manifest, options.compact, compact_settings(options), jobs=options.jobs, share=share or (1, 1))
    print(f"compact copy: {made}")
    if not made.is_complete:
        print("call again, or wait for the other shares; the last one to end makes the copy a dataset")
        return
    if made.failures:
        print(f"  those left out: {made.target / 'failures.csv'}")
    print(f"  to use it: {_use(settings)}data.csv={made.target / 'clips.csv'}")


def _use(settings: DataSettings) -> str:
    return f"data={settings.kind} data.kind=folder +" if settings.is_official else "data=folder "


if __name__ == "__main__":
    raise SystemExit(main())
