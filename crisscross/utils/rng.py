"""Counter-based randomness: every draw is a function of (seed, purpose, epoch, sample) only.

There is no stream with a state. A run that resumes at step k therefore gets exactly the numbers of an uninterrupted
run, whatever the number of loader workers, devices or restarts.

``generator`` returns a NumPy generator for code that draws a few numbers for one purpose (a start time, a permutation).
``sample_keys`` and ``uniforms`` draw for a whole batch at once, one row per sample, for the augmentations.
"""

from __future__ import annotations

import hashlib

import numpy as np

_UINT64 = np.uint64
_GOLDEN_GAMMA = _UINT64(0x9E3779B97F4A7C15)  # SplitMix64 constants: Steele, Lea, Flood (OOPSLA 2014)
_MIX_1 = _UINT64(0xBF58476D1CE4E5B9)
_MIX_2 = _UINT64(0x94D049BB133111EB)


def derive_key(seed: int, purpose: str, *counters: int) -> int:
    """Hash a seed, a purpose and counters to a 63-bit key.

    It is the same on every machine and Python version.

    Args:
        seed: the experiment's seed.
        purpose: name of the draw, such as ``"shuffle"``; different purposes are independent.
        *counters: further indices of the draw: epoch, sample id, view.

    Returns:
        An integer in [0, 2**63), valid for ``torch.Generator.manual_seed``.
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a NumPy generator (Philox) for one purpose and set of counters."""
    return np.random.Generator(np.random.Philox(key=derive_key(seed, purpose, *counters)))


def sample_keys(seed: int, purpose: str, epoch: int, sample_ids: np.ndarray) -> np.ndarray:
    """Return one 64-bit key per sample.

    Args:
        seed: the experiment's seed.
        purpose: name of the draws, such as ``"video/view0"``.
        epoch: the epoch, so that a sample's augmentation differs between epochs.
        sample_ids: integers, shape (B,): the samples' ids in the epoch, not their positions in the batch.

    Returns:
        ``uint64`` array of shape (B,).
    """
    base = _UINT64(derive_key(seed, purpose, epoch))
    return _mix(base + np.asarray(sample_ids).astype(_UINT64) * _GOLDEN_GAMMA)


def uniforms(keys: np.ndarray, purpose: str, num: int) -> np.ndarray:
    """Draw ``num`` numbers for each key, uniform in [0, 1).

    Args:
        keys: ``uint64`` array of shape (B,), from ``sample_keys``.
        purpose: name of the augmentation, such as ``"flip"``; different purposes are independent.
        num: numbers per key.

    Returns:
        ``float64`` array of shape (B, num). Row b depends only on ``keys[b]`` and ``purpose``.
    """
    salt = _UINT64(derive_key(0, purpose))
    counters = np.arange(1, num + 1, dtype=_UINT64) * _GOLDEN_GAMMA
    bits = _mix(_mix(np.asarray(keys, dtype=_UINT64) ^ salt)[:, None] + counters[None, :])
    return (bits >> _UINT64(11)).astype(np.float64) * 2.0**-53


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer: a bijection on 64-bit integers with full avalanche."""
    values = (values ^ (values >> _UINT64(30))) * _MIX_1
    values = (values ^ (values >> _UINT64(27))) * _MIX_2
    return values ^ (values >> _UINT64(31))
