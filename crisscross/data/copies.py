"""The part of preparing that copies: ``--compact`` and ``--shards`` of ``python -m crisscross.data.prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from crisscross.data.compact_settings import CompactSettings
from crisscross.data.settings import DataSettings
from crisscross.data.shards import DEFAULT_SHARD_BYTES


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
    from crisscross.data import compact, shards
    from crisscross.data.manifest import read_manifest

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
