"""Learning-rate schedules: exact endpoints, shapes, and errors."""

from __future__ import annotations

import math
import pickle
import re
from itertools import pairwise
from typing import Any

import pytest

from crisscross.config.base import parse
from crisscross.config.optim import OptimSettings
from crisscross.optim.schedules import (
    build_schedules,
    constant,
    epochs_to_steps,
    steps_decay,
    warmup_cosine,
)

PAPER = {"total_steps": 1000, "warmup_steps": 20, "peak": 2e-4, "final": 1e-4}


def test_constant() -> None:
    assert {constant(step, value=2e-3) for step in (0, 1, 10**9)} == {2e-3}


def test_warmup_cosine_endpoints_are_exact() -> None:
    assert warmup_cosine(0, **PAPER) == 0.0
    assert warmup_cosine(0, **PAPER, start=1e-6) == 1e-6
    assert warmup_cosine(20, **PAPER) == 2e-4
    assert warmup_cosine(1000, **PAPER) == 1e-4
    assert warmup_cosine(0, **{**PAPER, "warmup_steps": 0}) == 2e-4
    assert warmup_cosine(1, total_steps=1, warmup_steps=0, peak=0.3, final=0.1) == 0.1


def test_warmup_cosine_between() -> None:
    assert warmup_cosine(10, **PAPER) == pytest.approx(1e-4)
    assert warmup_cosine(510, **PAPER) == pytest.approx(1.5e-4)
    quarter = 1e-4 + 1e-4 * (1 + math.cos(math.pi / 4)) / 2
    assert warmup_cosine(265, **PAPER) == pytest.approx(quarter)
    rates = [warmup_cosine(step, **PAPER) for step in range(1001)]
    assert all(before < after for before, after in pairwise(rates[:21]))
    assert all(before > after for before, after in pairwise(rates[20:]))


def test_steps_decay() -> None:
    settings = {"initial": 5e-4, "milestones": [6, 10, 14], "gamma": 0.3}
    rates = [steps_decay(step, **settings) for step in range(20)]
    expected = [5e-4] * 6 + [5e-4 * 0.3] * 4 + [5e-4 * 0.3**2] * 4 + [5e-4 * 0.3**3] * 6
    assert rates == expected
    assert steps_decay(7, initial=1.0, milestones=[], gamma=0.5) == 1.0


def test_steps_decay_after_a_warm_up() -> None:
    settings = {"initial": 0.5, "milestones": [4, 6], "gamma": 0.1}
    rates = [steps_decay(step, **settings, warmup_steps=4, start=0.1) for step in range(8)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.05, 0.05, 0.005, 0.005])
    assert [steps_decay(step, **settings, warmup_steps=2) for step in (0, 1, 2)] == [0.0, 0.25, 0.5]
    assert steps_decay(3, initial=1.0, milestones=[], gamma=0.5, warmup_steps=6) == 0.5


def test_epochs_to_steps() -> None:
    assert epochs_to_steps(2, steps_per_epoch=7) == 14
    assert [epochs_to_steps(epochs, steps_per_epoch=5) for epochs in (0, 0.1, 0.5, 0.7)] == [0, 1, 3, 4]


def test_schedules_of_a_config() -> None:
    base = {"name": "warmup_cosine", "peak": 2e-4, "final": 1e-4, "warmup_epochs": 2}
    decay = {"name": "steps_decay", "initial": 5e-4, "gamma": 0.3, "milestone_epochs": [6, 10]}
    optim = _optim(base=base, predictor={"name": "constant", "value": 2e-3}, decay=decay)
    schedules = build_schedules(optim.groups, total_steps=1000, steps_per_epoch=10)
    assert [schedules["base"](step) for step in (0, 20, 1000)] == [0.0, 2e-4, 1e-4]
    assert pickle.loads(pickle.dumps(schedules["base"]))(20) == 2e-4
    assert schedules["predictor"](999) == 2e-3
    assert [schedules["decay"](step) for step in (59, 60, 100)] == [5e-4, 5e-4 * 0.3, 5e-4 * 0.3**2]
    with pytest.raises(ValueError, match=r"optim.groups.base: warmup_steps=20 of total_steps=20: expected"):
        build_schedules(optim.groups, total_steps=20, steps_per_epoch=10)


def _optim(**groups: dict[str, Any]) -> OptimSettings:
    larc = {"enabled": False, "trust": 0.001, "eps": 1e-8}
    return parse(OptimSettings, {"name": "adam", "weight_decay": 0.0, "larc": larc, "groups": groups})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant(-1, value=1.0), "step=-1: expected at least 0"),
        (lambda: warmup_cosine(-1, **PAPER), "step=-1: expected at least 0"),
        (lambda: warmup_cosine(1001, **PAPER), "step=1001: expected at most total_steps=1000"),
        (
            lambda: warmup_cosine(0, **{**PAPER, "warmup_steps": 1000}),
            "warmup_steps=1000 of total_steps=1000: expected 0 <= warm-up < total",
        ),
        (lambda: warmup_cosine(0, **{**PAPER, "warmup_steps": -1}), "warmup_steps=-1 of total_steps=1000"),
        (
            lambda: steps_decay(0, initial=1.0, milestones=[3, 2], gamma=0.3),
            "milestones=[3, 2]: expected ascending",
        ),
        (
            lambda: steps_decay(0, initial=1.0, milestones=[3, 5], gamma=0.3, warmup_steps=4),
            "warmup_steps=4, milestones=[3, 5]: expected a warm-up that is over at the first milestone; shorten",
        ),
        (lambda: epochs_to_steps(-1, steps_per_epoch=3), "epochs=-1: expected at least 0"),
        (lambda: epochs_to_steps(1, steps_per_epoch=0), "steps_per_epoch=0: expected at least 1"),
        (
            lambda: _optim(base={"name": "cosine"}),
            "groups.base.name=cosine is unknown: choose one of constant",
        ),
        (lambda: _optim(base={"value": 1.0}), "groups.base"),
        (
            lambda: _optim(base={"name": "constant", "rate": 1.0}),
            "groups.base.value is missing: set it; groups.base.rate is not a setting: check its spelling",
        ),
        (
            lambda: _optim(base={"name": "steps_decay", "initial": 1, "gamma": 0.3, "milestone_epochs": [3, 2]}),
            "optim.groups.base.milestone_epochs=[3,2]: expected ascending epochs; sort them",
        ),
    ],
)
def test_mistakes_are_explained(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
