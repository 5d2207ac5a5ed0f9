"""The identity of an experiment: the hash of everything that can change its result.

It is the SHA-256 of the canonical JSON of the resolved config without the keys in ``EXECUTION_ONLY``, of the identities
of the experiments it needs, and of a schema version. The same identity always has the same run directory and the same
MLflow run. The hash is over the whole config, not over a difference from defaults: a changed default changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crisscross.utils.plain import canonical_json, without

SCHEMA_VERSION = 1
"""Raised when the code computes something else from the same config."""

EXECUTION_ONLY = (
    "execution",  # device, processes, threads, workers, checkpoint interval. (On CPUs each of several processes
    # normalizes by its own share of the batch, on GPUs by the whole batch: the training loop warns.)
    "tracking",  # where and how often the run is recorded
    "runs_root",
    "scale",  # a name for a choice of config files, whose content is in the config itself
    "weights.run",  # the identity of the parent is part of the identity
    "weights.video",  # `weights.fingerprint` is the hash of the files
    "weights.audio",
    # Where clips are and how they are listed. `data.fingerprint` is the hash of the clips.
    "data.root",
    "data.csv",
    "data.annotations",
    "data.allow_missing",
    "data.require",
    "data.manifest_root",
    "data.file_column",
    "data.label_column",
    "data.split_column",
    "data.test_fraction",
    "data.val_fraction",
    "data.toy.val_clips_per_class",
    "data.thorough",
    "data.cache",  # the same bits as decoding
    "data.stage",  # where a job reads the same bytes
    "data.shards",
)
"""The keys that cannot change a result. Everything else is part of the identity."""

NOT_IN_PRETRAINING = (
    "views.evaluation_clips",
    "data.test_split",
    "data.folds",  # a pretraining has its fold in data.train_split=train1
    "training.keep_epochs",  # which checkpoints stay on disk
)
"""Keys that only evaluations depend on; a change needs no new pretraining."""


def scientific(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without keys that cannot change the result.

    Args:
        config: a resolved config; it is copied.
    """
    is_pretraining = "method" in config
    return without(config, (*EXECUTION_ONLY, *NOT_IN_PRETRAINING) if is_pretraining else EXECUTION_ONLY)


def weights_hash(video: str | None, audio: str | None) -> str | None:
    """Return the hash of released weight files; None without files.

    Raises:
        FileNotFoundError: if the file of a key does not exist.
    """
    digests = []
    for modality, name in (("video", video), ("audio", audio)):
        if name:
            path = Path(name)
            if not path.is_file():
                raise FileNotFoundError(f"weights.{modality}={path}: no such file: give a file of released weights")
            with path.open("rb") as file:
                digests.append(f"{modality}:{hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else None


def identity(kind: str, config: Mapping[str, Any], *, parents: Iterable[str] = ()) -> str:
    """Return the identity of an experiment.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config, plain dicts, lists and scalars.
        parents: identities of the experiments whose results this one uses.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if the data has no fingerprint yet.
    """
    if "data" in config and not config["data"].get("fingerprint"):
        raise ValueError(
            "data.fingerprint is empty: prepare the data (crisscross.data.catalog) before asking for an identity"
        )
    content = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "config": scientific(config),
        "parents": sorted(parents),
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def group_hash(config: Mapping[str, Any], *, axes: Iterable[str]) -> str:
    """Return the hash of a config without a study's axes.

    Axes are the seed, the relaxation, ... Experiments with the same hash differ in nothing but the axes, so their
    results belong in one table. The folds of a fine-tuning have the same hash.
    """
    one_fold = config.get("downstream", {}).get("name") == "finetune"
    left_out = [*axes, "data.folds"] if one_fold else axes
    return hashlib.sha256(canonical_json(without(scientific(config), left_out)).encode()).hexdigest()
