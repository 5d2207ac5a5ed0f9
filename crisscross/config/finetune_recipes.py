"""The paper's fine-tuning recipes.

A recipe depends on pretraining set, dataset and clip length. ``fill_in`` writes it into a config before the config's
identity is computed. Numbers that are already set stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# ours: they use the Kinetics rows, so that this baseline and a Kinetics pretraining differ only in the weights
NOTHING = "nothing"
"""``downstream.pretrained_on`` of randomly initialized backbones."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one fine-tuning.

    Attributes:
        batch_size: clips per step.
        learning_rate: SGD's, before the first milestone.
        dropout: probability, before the last layer.
        milestone_epochs: epochs at which the learning rate is multiplied by 0.3.
        epochs: total number of epochs.
    """

    batch_size: int
    learning_rate: float
    dropout: float
    milestone_epochs: tuple[int, ...]
    epochs: int = 20


PRETRAINED_ON = {"kinetics_sound": "kinetics", "kinetics400": "kinetics", "audioset": "audioset", NOTHING: "kinetics"}
"""The rows of the table that each pretraining set uses."""

_AT_8, _AT_32 = (6, 10, 14), (8, 12, 16)

TABLE: dict[tuple[str, str, int], Recipe] = {
    ("kinetics", "ucf101", 8): Recipe(64, 5e-4, 0.0, _AT_8),
    ("kinetics", "ucf101", 32): Recipe(32, 7e-5, 0.0, _AT_32),
    ("kinetics", "hmdb51", 8): Recipe(64, 5e-4, 0.0, _AT_8),
    ("kinetics", "hmdb51", 32): Recipe(32, 1e-4, 0.0, _AT_32),
    ("audioset", "ucf101", 8): Recipe(64, 7e-5, 0.1, _AT_8),
    ("audioset", "ucf101", 32): Recipe(32, 7e-5, 0.0, _AT_32),
    ("audioset", "hmdb51", 8): Recipe(64, 1e-4, 0.1, _AT_8),
    ("audioset", "hmdb51", 32): Recipe(32, 1e-4, 0.1, _AT_32),
}
"""By pretraining set, dataset and frames: the paper's eight rows; both Kinetics sets share four."""

# ours: batch and learning rate, for 400 steps of a narrow network, which hardly learns at 2e-3. Schedule: the paper's
DEMO = Recipe(16, 1e-2, 0.0, _AT_8)
"""The recipe for the demo's generated clips, for all pretrainings and clip lengths."""

RECIPE_KEYS = {
    "downstream.training.global_batch_size": "batch_size",
    "downstream.training.epochs": "epochs",
    "downstream.head.dropout": "dropout",
    "downstream.optim.groups.base.initial": "learning_rate",
    "downstream.optim.groups.base.milestone_epochs": "milestone_epochs",
}
"""Keys that a recipe fills in if they are null, and the recipe's attribute."""


def fill_in(config: dict[str, Any], *, pretrained_on: str | None) -> None:
    """Fill in the null values of a fine-tuning's config.

    Args:
        config: the resolved config; changed in place.
        pretrained_on: ``data.name`` of the pretraining to evaluate; None if there is none.

    Raises:
        ValueError: if a number is null and the table has no row for it.
    """
    downstream, weights = config["downstream"], config["weights"]
    if downstream["pretrained_on"] is None:
        if pretrained_on is None and (weights["video"] or weights["audio"]):
            raise ValueError(
                "downstream.pretrained_on is null: weight files do not record their pretraining set: set it to"
                f" {', '.join(name for name in PRETRAINED_ON if name != NOTHING)}, or to any other name"
            )
        downstream["pretrained_on"] = pretrained_on or NOTHING
    null = [*_null_numbers(config)]
    if not null:
        return
    unset = [dotted for dotted, *_ in null]
    recipe = recipe_of(downstream["pretrained_on"], config["data"]["name"], downstream["frames"], unset=unset)
    for dotted, node, key in null:
        value = getattr(recipe, RECIPE_KEYS[dotted])
        node[key] = list(value) if isinstance(value, tuple) else value


def recipe_of(pretrained_on: str, dataset: str, frames: int, *, unset: Iterable[str] = RECIPE_KEYS) -> Recipe:
    """Return a row of the table.

    Args:
        pretrained_on: ``kinetics_sound``, ``kinetics400``, ``audioset`` or ``nothing``.
        dataset: ``data.name`` of the clips to fine-tune on.
        frames: frames per clip, 8 or 32.
        unset: the keys that must be set by hand if there is no such row, for the message.

    Raises:
        ValueError: if there is no such row.
    """
    if dataset == "demo":
        return DEMO
    recipe = TABLE.get((PRETRAINED_ON.get(pretrained_on, ""), dataset, frames))
    if recipe is None:
        raise ValueError(
            f"downstream.pretrained_on={pretrained_on}, data.name={dataset}, downstream.frames={frames}: the paper has"
            f" recipes for {', '.join(PRETRAINED_ON)}, fine-tuned on ucf101 or hmdb51 at 8 or 32 frames: choose from"
            f" these, or set {', '.join(unset)}"
        )
    return recipe


def _null_numbers(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield key, node and the key's last part of null numbers."""
    for dotted in RECIPE_KEYS:
        *path, key = dotted.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and key in node and node[key] is None:
            yield dotted, node, key
