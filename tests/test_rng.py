"""Draws depend only on their key and are uniform."""

from __future__ import annotations

import numpy as np
from scipy.stats import kstest

from crisscross.utils.rng import derive_key, generator, sample_keys, uniforms


def test_keys_are_the_same_on_every_machine() -> None:
    assert derive_key(0, "shuffle", 3) == derive_key(0, "shuffle", 3)
    assert derive_key(0, "shuffle", 3) == 3032523032124654209


def test_seed_purpose_and_counters_all_matter() -> None:
    keys = {derive_key(s, p, *c) for s in (0, 1) for p in ("a", "b") for c in ((), (0,), (1,), (0, 1), (1, 0))}
    assert len(keys) == 20


def test_a_row_depends_on_its_key_alone() -> None:
    keys = sample_keys(7, "video/view0", 2, np.arange(100))
    everything = uniforms(keys, "flip", 5)
    assert np.array_equal(uniforms(keys[[42]], "flip", 5), everything[[42]])
    assert np.array_equal(uniforms(keys[::-1], "flip", 5), everything[::-1])
    assert np.array_equal(uniforms(keys, "flip", 3), everything[:, :3])


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniforms(sample_keys(0, "x", 0, np.arange(20_000)), "y", 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert kstest(column, "uniform").pvalue > 1e-4
    correlations = np.corrcoef(draws.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.03
    successive = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(successive) < 0.03


def test_purposes_and_epochs_are_independent() -> None:
    ids = np.arange(10_000)
    one, other = (uniforms(sample_keys(0, "x", epoch, ids), "y", 1)[:, 0] for epoch in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
    keys = sample_keys(0, "x", 0, ids)
    assert abs(np.corrcoef(uniforms(keys, "y", 1)[:, 0], uniforms(keys, "z", 1)[:, 0])[0, 1]) < 0.04


def test_generator_repeats_itself() -> None:
    assert np.array_equal(generator(1, "shuffle", 5).permutation(50), generator(1, "shuffle", 5).permutation(50))
