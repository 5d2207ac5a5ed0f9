"""Prepare a dataset for an experiment, and open it inside a job.

``prepare`` runs once, before an experiment has an identity: it generates or probes the clips and fills in
``data.fingerprint``. ``open_manifest`` runs inside jobs and only reads.

A launch imports this module, so it imports nothing heavy until a manifest is built or opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.config.datasets import DATASETS
from crisscross.config.method import DatasetInfo, settings_of
from crisscross.data.epoch_size import steps_per_epoch
from crisscross.data.manifest_summary import check_split, read_current, read_summary
from crisscross.data.synthetic.generate import generate
from crisscross.data.synthetic.spec import SyntheticSettings

if TYPE_CHECKING:  # it imports pandas
    from crisscross.data.manifest import Manifest


def prepare(data: Mapping[str, Any], *, progress: bool = True) -> dict[str, Any]:
    """Generate or probe the clips of a dataset, unless that is done.

    Args:
        data: the ``data`` node of a resolved config.
        progress: whether to show progress bars on the terminal.

    Returns:
        The same node with absolute paths and ``fingerprint`` filled in.

    Raises:
        ValueError: if a setting or a file of the list is wrong.
        FileNotFoundError: if the clips are not where the settings point.
    """
    settings = parse(DataSettings, data)
    directory = manifest_directory(settings)
    if settings.kind != "toy":
        make_writable(directory, key="data.manifest_root")
    else:
        generate(synthetic_root(settings), synthetic_settings(settings), progress=progress)
    options = source_options(settings)
    summary = read_current(directory, **options)
    if summary is None:
        from crisscross.data.build_manifest import build_manifest  # pandas and the decoder: only if there is work

        build_manifest(directory, **options, progress=progress)
        summary = read_summary(directory)
    if settings.kind == "toy" and summary["num_rejected"]:
        raise ValueError(_damaged_clips(directory, root=options["root"]))
    for split in settings.splits:
        check_split(directory, split, summary["num_by_split"])
    data_hash = synthetic_settings(settings).fingerprint() if settings.kind == "toy" else summary["fingerprint"]
    paths = _absolute_paths(settings)
    if settings.shards:  # not part of _absolute_paths, as the manifest's folder does not depend on it
        paths["shards"] = str(Path(settings.shards).absolute())
    return {**data, **paths, "fingerprint": data_hash}


def source_options(settings: DataSettings) -> dict[str, Any]:
    """Return the arguments of ``source.Source.of`` for a dataset."""
    if settings.kind == "toy":
        return {"root": synthetic_root(settings)}
    common = {"root": settings.root, "require": settings.require, "thorough": settings.thorough}
    if settings.is_official:
        official = {"annotations": settings.annotations, "allow_missing": settings.allow_missing}
        return {**common, "official": settings.kind, **official}
    keys = ("csv", "file_column", "label_column", "split_column", "test_fraction")
    held_out = {"val_fraction": settings.val_fraction} if settings.val_fraction else {}  # as before
    return {**common, **{key: getattr(settings, key) for key in keys}, **held_out}


def _damaged_clips(directory: Path, *, root: Path) -> str:
    """Return the error text for generated clips that cannot be used."""
    rejected = _read_manifest(directory, check_files=False).rejected
    first = rejected.iloc[0]
    return (
        f"{len(rejected)} of the generated clips are damaged ({first.path}: {first.reason}):"
        f" delete {root} and run again"
    )


def open_manifest(settings: DataSettings) -> Manifest:
    """Read the manifest of a prepared dataset and check its files.

    Raises:
        FileNotFoundError: if the manifest or clips are missing.
        ValueError: if the clips have changed since ``prepare``.
    """
    manifest = _read_manifest(manifest_directory(settings))
    if settings.kind != "toy" and manifest.data_hash != settings.fingerprint:
        raise ValueError(
            f"the clips of {settings.name} have changed since this experiment was made (fingerprint"
            f" {manifest.data_hash[:12]}, expected {str(settings.fingerprint)[:12]}): launch the study again"
        )
    return manifest


def _read_manifest(directory: Path, *, check_files: bool = True) -> Manifest:
    from crisscross.data.manifest import read_manifest  # it imports pandas

    return read_manifest(directory, check_files=check_files)


def check_batch(config: Mapping[str, Any], *, node: str = "training") -> None:
    """Check that the clips fill a batch and suit the method.

    Args:
        config: its ``data``, prepared, whose ``train_split`` is one of the manifest, its ``training`` and, of a
            pretraining, its ``method``.
        node: the config node of ``training``, for messages.

    Raises:
        ValueError: if they do not; the message gives the key, the numbers and the remedy.
        FileNotFoundError: if the manifest is missing.
    """
    count_epoch_steps(config, node=node)
    method = settings_of(config.get("method", {}))
    if method is not None:
        clips = dataset_info(config["data"])
        method.check_clips(num_clips=clips.num_clips, num_classes=clips.num_classes)


def count_epoch_steps(config: Mapping[str, Any], *, node: str = "training") -> int:
    """Return how many steps a training takes per epoch of its clips.

    Args:
        config: its ``data``, prepared, and its ``training``.
        node: the config node of ``training``, for messages.

    Raises:
        ValueError: if there are no clips, or too few for a step.
        FileNotFoundError: if the manifest is missing.
    """
    return steps_per_epoch(
        num_clips=dataset_info(config["data"]).num_clips,
        draws_per_clip=config["training"]["draws_per_clip"],
        batch_size=config["training"]["global_batch_size"],
        node=node,
    )


def dataset_info(data: Mapping[str, Any]) -> DatasetInfo:
    """Return the numbers of clips and classes of the training split.

    Args:
        data: a prepared ``data`` node, whose ``train_split`` is one of the manifest.

    Raises:
        FileNotFoundError: if the manifest is missing.
        ValueError: if it has no such split.
    """
    directory = manifest_directory(parse(DataSettings, data))
    summary = read_summary(directory)
    check_split(directory, data["train_split"], summary["num_by_split"])
    return DatasetInfo(num_clips=summary["num_by_split"][data["train_split"]], num_classes=len(summary["classes"]))


def describe_data(data: Mapping[str, Any]) -> str:
    """Return one line on the clips and the rejected files.

    Args:
        data: what ``prepare`` returned.
    """
    settings = parse(DataSettings, data)
    directory = manifest_directory(settings)
    try:
        summary = read_summary(directory)
    except FileNotFoundError:
        return f"{data['name']}: not prepared yet"
    counts = summary["num_by_split"]
    names = settings.splits if settings.folds else counts
    splits = ", ".join(f"{counts.get(name, 0)} {name}" for name in names)
    line = f"{data['name']}: {splits} clips of {len(summary['classes'])} classes"
    if lists := lists_text(settings.kind, summary):
        line = f"{line} ({lists})"
    if not summary["num_rejected"]:
        return line
    reasons = ", ".join(f"{count} x {reason}" for reason, count in list(summary["reasons"].items())[:3])
    table = os.path.relpath(directory / "rejected.parquet")
    return f"{line}; {summary['num_rejected']} files rejected ({reasons}): {table}"


def lists_text(kind: str, summary: Mapping[str, Any]) -> str:
    """Return which official lists a manifest follows, and whether they are complete.

    Args:
        kind: the dataset.
        summary: of its manifest; empty text without official lists, or from an older version.
    """
    lists = [Path(path) for path in summary.get("lists", ())]
    if not lists:
        return ""
    names = ", ".join(path.name for path in lists[:3]) + (", ..." if len(lists) > 3 else "")
    official = DATASETS[kind].num_clips
    short = official is not None and summary["num_listed"] != official
    note = f", which name {summary['num_listed']} clips: officially there are {official}" if short else ""
    return f"lists: {names}{note}"


def synthetic_settings(settings: DataSettings) -> SyntheticSettings:
    """Return the settings of the demo clips.

    Raises:
        ValueError: if ``data.toy`` holds an unknown key.
    """
    known = SyntheticSettings.__dataclass_fields__
    for key in settings.toy:
        if key not in known:
            raise ValueError(f"data.toy.{key} is not a setting: choose from {', '.join(known)}")
    return SyntheticSettings(**settings.toy)


def synthetic_root(settings: DataSettings) -> Path:
    """Return the folder of the demo clips, which depends on their settings."""
    return Path(settings.root or "data").absolute() / f"demo-{synthetic_settings(settings).fingerprint()[:8]}"


def manifest_directory(settings: DataSettings) -> Path:
    """Return the folder of a manifest, by the options of its list."""
    if settings.kind == "toy":
        return synthetic_root(settings) / "manifest"
    options = {key: value for key, value in source_options(settings).items() if key != "allow_missing"}
    source = {**options, **_absolute_paths(settings)}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return Path(source["manifest_root"]) / f"{settings.name}-{digest[:8]}"


def make_writable(directory: Path, *, key: str) -> None:
    """Create a folder and check that it can be written.

    Raises:
        OSError: if it cannot be; the message names the setting.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(f"{key}: cannot write {directory} ({error.strerror}): choose a folder you can write") from error


def _absolute_paths(settings: DataSettings) -> dict[str, str | None]:
    """Return the path settings as absolute paths, as jobs may start elsewhere."""
    keys: tuple[str, ...] = ("root",)
    if settings.kind != "toy":
        keys = ("root", "annotations" if settings.is_official else "csv", "manifest_root")
    paths = {key: getattr(settings, key) for key in keys}
    return {key: None if path is None else str(Path(path).absolute()) for key, path in paths.items()}
