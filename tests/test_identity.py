"""What is part of an experiment's identity and what is not."""

from __future__ import annotations

import copy

import pytest

from crisscross.run.identity import group_hash, identity
from crisscross.utils.plain import without

CONFIG = {
    "relaxation": "mild",
    "seed": 0,
    "method": {"name": "crisscross"},
    "data": {"name": "demo", "root": "here", "fingerprint": "abc", "train_split": "train"},
    "execution": {"num_workers": 1},
    "tracking": {"uri": "sqlite:///x.db"},
    "runs_root": "runs",
    "scale": {"name": "demo"},
}


def _changed(path: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    node = config
    for part in parents:
        node = node[part]
    node[last] = value
    return config


@pytest.mark.parametrize(
    "path", ["relaxation", "seed", "method.name", "data.fingerprint", "data.train_split", "data.name"]
)
def test_what_can_change_the_result_changes_the_identity(path: str) -> None:
    assert identity("pretrain", _changed(path, "other")) != identity("pretrain", CONFIG)


@pytest.mark.parametrize("path", ["execution.num_workers", "tracking.uri", "runs_root", "data.root", "scale.name"])
def test_what_cannot_change_the_result_does_not(path: str) -> None:
    assert identity("pretrain", _changed(path, "other")) == identity("pretrain", CONFIG)


def test_a_new_key_changes_it_whatever_its_value() -> None:
    assert identity("pretrain", _changed("method.new", None)) != identity("pretrain", CONFIG)


def test_kind_and_parents_are_part_of_it() -> None:
    plain = identity("downstream", CONFIG)
    assert plain != identity("pretrain", CONFIG)
    assert plain != identity("downstream", CONFIG, parents=["a"])
    assert identity("downstream", CONFIG, parents=["a", "b"]) == identity("downstream", CONFIG, parents=["b", "a"])


def test_order_of_keys_is_nothing() -> None:
    assert identity("pretrain", dict(reversed(CONFIG.items()))) == identity("pretrain", CONFIG)


def test_it_is_the_same_for_ever() -> None:
    """A change here makes every run of every user a new one: raise SCHEMA_VERSION and mean it."""
    assert identity("pretrain", CONFIG)[:12] == "a98cc1bc7a01"


def test_without_fingerprint_there_is_no_identity() -> None:
    with pytest.raises(ValueError, match=r"data.fingerprint is empty: prepare the data"):
        identity("pretrain", _changed("data.fingerprint", None))


def test_family_leaves_the_axes_out() -> None:
    axes = ("relaxation", "seed")
    assert group_hash(CONFIG, axes=axes) == group_hash(_changed("relaxation", "none"), axes=axes)
    assert group_hash(CONFIG, axes=axes) == group_hash(_changed("seed", 4), axes=axes)
    assert group_hash(CONFIG, axes=axes) != group_hash(_changed("method.name", "avid"), axes=axes)


def test_without_takes_a_copy() -> None:
    config = copy.deepcopy(CONFIG)
    assert "root" not in without(config, ["data.root", "no.such.key"])["data"]
    assert config == CONFIG
