"""The clips of an experiment as MLflow shows them among a run's inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crisscross.record import mask_passwords

DIGEST_LENGTH = 36  # as much of a digest as MLflow takes


@dataclass(frozen=True)
class Dataset:
    """A dataset and what a run does with it.

    MLflow has one dataset a name and digest, with the source that came first; only the context is a run's own.

    Attributes:
        name: such as ``ucf101``.
        digest: of its manifest, shortened.
        source: JSON: what kind of dataset, and where it lay.
        context: what for, and which clips: ``pretraining: train``, ``evaluation: train, test, fold 1``.
    """

    name: str
    digest: str
    source: str
    context: str


def dataset(kind: str, config: Mapping[str, Any]) -> Dataset:
    """Return the clips that an experiment is about: what they are called, where they lie, which of them.

    Args:
        kind: ``pretrain`` or ``downstream``.
        config: that of the experiment.
    """
    data = config["data"]
    splits = [data.get(key) for key in ("train_split", "test_split")][: 1 if kind == "pretrain" else 2]
    folds = [f"fold {fold}" for fold in data.get("folds") or []] if kind == "downstream" else []
    place = {"kind": data.get("kind"), "path": mask_passwords(data.get("csv") or data.get("root") or "")}
    what = "pretraining" if kind == "pretrain" else "evaluation"
    return Dataset(
        name=data["name"],
        digest=str(data["fingerprint"])[:DIGEST_LENGTH],
        source=json.dumps(place),
        context=f"{what}: {', '.join(filter(None, [*splits, *folds]))}",
    )
