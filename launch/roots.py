"""Where the datasets of a study lie: what was typed as ``roots.NAME=DIR``, and what goes without saying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crisscross.data.official import DATASETS
from launch.composer import StudySettings


def known_roots(roots: Mapping[str, str | None], typed: Sequence[str]) -> dict[str, str]:
    """Return where datasets lie, by ``data.name``.

    Args:
        roots: the ``roots`` of the launch.
        typed: overrides of the pretrainings: ``data=NAME data.root=DIR`` says it as well.

    Returns:
        Without those of which nothing is known. Kinetics-Sound is a part of Kinetics400.
    """
    said = dict(override.split("=", 1) for override in typed if override.startswith(("data=", "data.root=")))
    known = {name: root for name, root in roots.items() if root}
    if {"data", "data.root"} <= set(said):
        known.setdefault(said["data"], said["data.root"])
    if "kinetics400" in known:
        known.setdefault("kinetics_sound", known["kinetics400"])
    return known


def without_unknown(study: StudySettings, roots: Mapping[str, str]) -> tuple[StudySettings, list[str]]:
    """Return a study without the evaluations on datasets that are nowhere, and a line for each such dataset.

    Raises:
        ValueError: nothing would be left of it.
    """
    kept, lacking = [], []
    for entry in study.downstream:
        named = [override.partition("=")[2] for override in entry if override.startswith("data=")]
        has_root = any(override.startswith("data.root=") for override in entry)
        unknown = [name for name in named if name in DATASETS and name not in roots and not has_root]
        lacking += unknown
        if not unknown:
            kept.append(entry)
    names = list(dict.fromkeys(lacking))
    if lacking and not kept:
        raise ValueError(
            f"roots.{names[0]} is not set, nor is any other dataset that this study evaluates on"
            f" ({', '.join(names)}): set roots.{names[0]}=DIR"
        )
    lines = [f"not evaluated on {name}: roots.{name} is not set (roots.{name}=DIR adds it)" for name in names]
    return study.model_copy(update={"downstream": kept}), lines
