"""The numbers of the paper's fine-tuning (PAPER section 5): what each pretraining set, dataset and clip length takes.

``fill_in`` writes them into a config before it has an identity (evaluation.py). A number that is set there already
stays. Nothing heavy is imported: a launch completes every config.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

NOTHING = "nothing"
"""``downstream.pretrained_on`` of untrained backbones; they take the Kinetics rows, so that the floor of a Kinetics
pretraining differs from it in the weights alone (chosen by us)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned.

    Attributes:
        batch_size: clips a step.
        learning_rate: before the first milestone.
        dropout: probability, before the last layer.
        milestone_epochs: epochs at which the learning rate is multiplied by 0.3.
        epochs: epochs in all.
    """

    batch_size: int
    learning_rate: float
    dropout: float
    milestone_epochs: tuple[int, ...]
    epochs: int = 20


PRETRAINED_ON = {"kinetics_sound": "kinetics", "kinetics400": "kinetics", "audioset": "audioset", NOTHING: "kinetics"}
"""Which rows of the table belong to which pretraining set."""

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
"""By pretraining set, dataset and frames: the paper's eight rows, whose first four stand for both Kinetics sets."""

DEMO = Recipe(16, 1e-2, 0.0, _AT_8)
"""The generated clips, whatever the backbone was pretrained on and however long the clip. The paper's schedule; batch
and learning rate chosen by us, for 400 steps of a narrow network: at 2e-3 it hardly learns."""

OPEN = {
    "downstream.training.global_batch_size": "batch_size",
    "downstream.training.epochs": "epochs",
    "downstream.head.dropout": "dropout",
    "downstream.optim.groups.base.initial": "learning_rate",
    "downstream.optim.groups.base.milestone_epochs": "milestone_epochs",
}
"""Keys of the config that the table fills where they are null."""


def fill_in(config: dict[str, Any], *, pretrained_on: str | None) -> None:
    """Write what a fine-tuning's config leaves open into it.

    Args:
        config: the resolved config; it is changed.
        pretrained_on: ``data.name`` of the pretraining that is evaluated; None where there is none.

    Raises:
        ValueError: one line, when a number is open and the table has no such row.
    """
    downstream, weights = config["downstream"], config["weights"]
    if downstream["pretrained_on"] is None:
        if pretrained_on is None and (weights["video"] or weights["audio"]):
            raise ValueError(
                "downstream.pretrained_on is null: released weights do not say what they were pretrained on: set it to"
                f" {', '.join(name for name in PRETRAINED_ON if name != NOTHING)}, or to any name of yours"
            )
        downstream["pretrained_on"] = pretrained_on or NOTHING
    left = [*_left_open(config)]
    if not left:
        return
    still_open = [dotted for dotted, *_ in left]
    recipe = recipe_of(downstream["pretrained_on"], config["data"]["name"], downstream["frames"], still_open=still_open)
    for dotted, node, key in left:
        value = getattr(recipe, OPEN[dotted])
        node[key] = list(value) if isinstance(value, tuple) else value


def recipe_of(pretrained_on: str, dataset: str, frames: int, *, still_open: Iterable[str] = OPEN) -> Recipe:
    """Return a row of the table.

    Args:
        pretrained_on: ``kinetics_sound``, ``kinetics400``, ``audioset`` or ``nothing``.
        dataset: ``data.name`` of the clips to fine-tune on.
        frames: of a clip, 8 or 32.
        still_open: the keys that must be set where there is no such row, for the complaint.

    Raises:
        ValueError: one line, when there is no such row.
    """
    if dataset == "demo":
        return DEMO
    recipe = TABLE.get((PRETRAINED_ON.get(pretrained_on, ""), dataset, frames))
    if recipe is None:
        raise ValueError(
            f"downstream.pretrained_on={pretrained_on}, data.name={dataset}, downstream.frames={frames}: the paper says"
            f" how to fine-tune what was pretrained on {', '.join(PRETRAINED_ON)} on ucf101 or hmdb51 at 8 or 32"
            f" frames: choose of these, or set {', '.join(still_open)}"
        )
    return recipe


def _left_open(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the dotted key, its node and its last part of each number that is there and null."""
    for dotted in OPEN:
        *path, key = dotted.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and key in node and node[key] is None:
            yield dotted, node, key
