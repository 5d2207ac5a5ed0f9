"""How many steps an epoch has. Imports nothing heavy: a launch checks batch sizes before it submits anything."""

from __future__ import annotations


def steps_per_epoch(*, num_clips: int, draws_per_clip: int, batch_size: int, node: str = "training") -> int:
    """Return the number of whole batches in an epoch.

    Args:
        num_clips: clips to draw from.
        draws_per_clip: samples per clip in an epoch.
        batch_size: samples per step.
        node: the config node that holds both settings, for the message.

    Raises:
        ValueError: if an epoch does not fill one batch.
    """
    num_samples = num_clips * draws_per_clip
    if num_samples < batch_size:
        raise ValueError(
            f"{node}.global_batch_size={batch_size} is larger than an epoch of {num_samples} samples"
            f" ({num_clips} clips x {draws_per_clip} draws): lower it, or raise {node}.draws_per_clip"
        )
    return num_samples // batch_size
