"""What a downstream config leaves open is filled in before it has an identity, so that it says everything.

A value that is set already stays. Nothing heavy is imported: a launch completes every config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crisscross.evaluation import finetune_table
from crisscross.identity import plain_copy

MODALITIES = {"retrieval": ("v",)}
"""By protocol, what is evaluated on clips with pictures and sound, where that is not everything (PAPER section 5)."""

ALL_MODALITIES = ("v", "a", "av")


def complete(config: Mapping[str, Any], *, pretrained_on: str | None) -> dict[str, Any]:
    """Return a downstream config with nothing left open.

    Fine-tuning takes its numbers from the table (``finetune_table.py``). Other protocols evaluate the modalities that
    every clip has, as ``data.require`` says: ``[v]`` for ``[video]``, ``[a]`` for ``[audio]``.

    Args:
        config: the resolved config.
        pretrained_on: ``data.name`` of the pretraining that is evaluated; None where there is none.

    Raises:
        ValueError: one line, when a number is open and the table has no such row.
    """
    completed = plain_copy(dict(config))
    if completed["downstream"]["name"] == "finetune":
        finetune_table.fill_in(completed, pretrained_on=pretrained_on)
    elif completed["downstream"].get("modalities", ()) is None:
        required = completed["data"].get("require") or ("video", "audio")
        completed["downstream"]["modalities"] = [*_modalities(completed["downstream"]["name"], required)]
    return completed


def _modalities(protocol: str, required: Any) -> tuple[str, ...]:
    if "audio" not in required:
        return ("v",)
    if "video" not in required:
        return ("a",)
    return MODALITIES.get(protocol, ALL_MODALITIES)
