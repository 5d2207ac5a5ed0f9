"""The datasets that an experiment can learn from: where their clips come from, and what they are.

``prepare`` is called once, before an experiment has an identity: it generates or probes the clips and fills in
``data.fingerprint``. ``open_manifest`` is called inside jobs and only reads.
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
from crisscross.config.method import DatasetInfo, settings_of
from crisscross.data.sampler import EpochPlan
from crisscross.data.synthetic.generate import generate
from crisscross.data.synthetic.spec import ToySettings

if TYPE_CHECKING:
    from crisscross.data.manifest import Manifest


def prepare(data: Mapping[str, Any], *, progress: bool = True) -> dict[str, Any]:
    """Make a dataset ready: generate the demo clips, or probe the files, whatever is not done yet.

    Args:
        data: the ``data`` node of a resolved config.
        progress: whether to show progress bars on the terminal.

    Returns:
        The same node with absolute paths and ``fingerprint`` filled in.

    Raises:
        ValueError: when a setting or a file of the list is wrong, in one line.
        FileNotFoundError: when the clips are not where the settings say.
    """
    from crisscross.data.manifest import build_manifest, check_split, read_current, read_summary

    settings = parse(DataSettings, data)
    directory = manifest_directory(settings)
    if settings.kind != "toy":
        make_writable(directory, key="data.manifest_root")
    else:
        generate(toy_root(settings), toy_settings(settings), progress=progress)
    options = source_options(settings)
    found = read_current(directory, **options)
    if found is None:
        build_manifest(directory, **options, progress=progress)
        found = read_summary(directory)
    if settings.kind == "toy" and found["num_rejected"]:
        raise ValueError(_damaged_toys(directory, root=options["root"]))
    for split in settings.splits:
        check_split(directory, split, found["num_by_split"])
    fingerprint = toy_settings(settings).fingerprint() if settings.kind == "toy" else found["fingerprint"]
    places = _absolute_paths(settings)
    if settings.shards:  # not in there, as it has no say in where the manifest lies
        places["shards"] = str(Path(settings.shards).absolute())
    return {**data, **places, "fingerprint": fingerprint}


def source_options(settings: DataSettings) -> dict[str, Any]:
    """Return how the clips of a dataset are listed: the arguments of ``source.Source.of``."""
    if settings.kind == "toy":
        return {"root": toy_root(settings)}
    common = {"root": settings.root, "require": settings.require, "thorough": settings.thorough}
    if settings.is_official:
        official = {"annotations": settings.annotations, "allow_missing": settings.allow_missing}
        return {**common, "official": settings.kind, **official}
    keys = ("csv", "file_column", "label_column", "split_column", "test_fraction")
    return {**common, **{key: getattr(settings, key) for key in keys}}


def _damaged_toys(directory: Path, *, root: Path) -> str:
    """Return one line about generated clips that cannot be used."""
    from crisscross.data.manifest import read_manifest

    rejected = read_manifest(directory, check_files=False).rejected
    first = rejected.iloc[0]
    return (
        f"{len(rejected)} of the generated clips are damaged ({first.path}: {first.reason}):"
        f" delete {root} and run again"
    )


def open_manifest(settings: DataSettings) -> Manifest:
    """Read the manifest of a prepared dataset, checking that its files are there and what they were.

    Raises:
        FileNotFoundError: when the manifest or files of it are gone.
        ValueError: when the clips are not those that the experiment was made for.
    """
    from crisscross.data.manifest import read_manifest

    manifest = read_manifest(manifest_directory(settings))
    if settings.kind != "toy" and manifest.fingerprint != settings.fingerprint:
        raise ValueError(
            f"the clips of {settings.name} have changed since this experiment was made (fingerprint"
            f" {manifest.fingerprint[:12]}, expected {str(settings.fingerprint)[:12]}): launch the study again"
        )
    return manifest


def check_batch(config: Mapping[str, Any], *, node: str = "training") -> None:
    """Make sure that there are clips to learn from, that an epoch of them fills a batch, and that they suit the method.

    Args:
        config: its ``data``, prepared, whose ``train_split`` is one of the manifest, its ``training`` and, of a
            pretraining, its ``method``.
        node: where the config has its ``training``, for messages.

    Raises:
        ValueError: when it does not, naming the key, the numbers and the remedy.
    """
    clips = clip_facts(config["data"])
    step_plan(config, node=node)
    method = settings_of(config.get("method", {}))
    if method is not None:
        method.check_clips(num_clips=clips.num_clips, num_classes=clips.num_classes)


def step_plan(config: Mapping[str, Any], *, node: str = "training") -> EpochPlan:
    """Return how many steps of which size a training does on its clips; which samples they see is left open.

    Args:
        config: what ``data`` and ``training`` hold, the data prepared.
        node: where the config has its ``training``, for messages.

    Raises:
        ValueError: there are no clips, or too few for a step.
        FileNotFoundError: the manifest is gone.
    """
    return EpochPlan(
        num_clips=clip_facts(config["data"]).num_clips,
        draws_per_clip=config["training"]["draws_per_clip"],
        batch_size=config["training"]["global_batch_size"],
        seed=0,
        node=node,
    )


def clip_facts(data: Mapping[str, Any]) -> DatasetInfo:
    """Return how much there is to learn from.

    Args:
        data: a prepared ``data`` node, whose ``train_split`` is one of the manifest.

    Raises:
        FileNotFoundError: when the manifest is gone.
        ValueError: when it has no such split.
    """
    from crisscross.data.manifest import check_split, read_summary

    directory = manifest_directory(parse(DataSettings, data))
    found = read_summary(directory)
    check_split(directory, data["train_split"], found["num_by_split"])
    return DatasetInfo(num_clips=found["num_by_split"][data["train_split"]], num_classes=len(found["classes"]))


def describe_data(data: Mapping[str, Any]) -> str:
    """Return one line about a prepared dataset: its clips by split, what was left out and why.

    Args:
        data: what ``prepare`` returned.
    """
    from crisscross.data.manifest import read_summary

    settings = parse(DataSettings, data)
    directory = manifest_directory(settings)
    try:
        found = read_summary(directory)
    except FileNotFoundError:
        return f"{data['name']}: not prepared yet"
    counts = found["num_by_split"]
    names = settings.splits if settings.folds else counts
    splits = ", ".join(f"{counts.get(name, 0)} {name}" for name in names)
    line = f"{data['name']}: {splits} clips of {len(found['classes'])} classes"
    if not found["num_rejected"]:
        return line
    reasons = ", ".join(f"{count} x {reason}" for reason, count in list(found["reasons"].items())[:3])
    where = os.path.relpath(directory / "rejected.parquet")
    return f"{line}; {found['num_rejected']} files rejected ({reasons}): {where}"


def toy_settings(settings: DataSettings) -> ToySettings:
    """Return what the demo clips are made from.

    Raises:
        ValueError: when ``data.toy`` holds a key that there is not.
    """
    known = ToySettings.__dataclass_fields__
    for key in settings.toy:
        if key not in known:
            raise ValueError(f"data.toy.{key} is not a setting: choose from {', '.join(known)}")
    return ToySettings(**settings.toy)


def toy_root(settings: DataSettings) -> Path:
    """Return the folder of the demo clips: one for each choice of settings."""
    return Path(settings.root or "data").absolute() / f"demo-{toy_settings(settings).fingerprint()[:8]}"


def manifest_directory(settings: DataSettings) -> Path:
    """Return the folder of a dataset's manifest: one for each way of listing the clips."""
    if settings.kind == "toy":
        return toy_root(settings) / "manifest"
    options = {key: value for key, value in source_options(settings).items() if key != "allow_missing"}
    source = {**options, **_absolute_paths(settings)}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return Path(source["manifest_root"]) / f"{settings.name}-{digest[:8]}"


def make_writable(directory: Path, *, key: str) -> None:
    """Make a folder that can be written.

    Raises:
        OSError: it cannot be, naming the setting.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(f"{key}: cannot write {directory} ({error.strerror}): choose a folder you can write") from error


def _absolute_paths(settings: DataSettings) -> dict[str, str | None]:
    """Jobs may start in another folder, so paths are made absolute once."""
    keys: tuple[str, ...] = ("root",)
    if settings.kind != "toy":
        keys = ("root", "annotations" if settings.is_official else "csv", "manifest_root")
    paths = {key: getattr(settings, key) for key in keys}
    return {key: None if path is None else str(Path(path).absolute()) for key, path in paths.items()}
