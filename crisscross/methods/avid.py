"""AVID: cross-modal instance discrimination (Morgado et al., CVPR 2021).

One view of a clip gives a video embedding and an audio embedding, l2-normalized. A memory holds one unit vector per
clip and modality. A query of one modality identifies the *other* modality's memory of its clip (score s+) among those
of K other clips (s-), by noise-contrastive estimation; a score is a dot product divided by the temperature:

    L = - log [e^{s+} / (e^{s+} + K Z)] - sum over the K negatives of log [K Z / (e^{s-} + K Z)]

averaged over the batch; the loss is the mean of the video queries' loss and the audio queries' loss. Z is the mean of
e^{s-} in the first batch, and constant afterwards.

All state is in buffers, and so in every checkpoint, *replicated* on every process (two times 0.9 GB for the 1.8 M clips
of AudioSet); every process applies the same update:

- ``video_memory`` and ``audio_memory``: initially Gaussian, normalized. After each optimizer step, the memory of the
  step's clips (of all micro-batches and processes) moves towards their embeddings: momentum x memory + (1 - momentum) x
  embedding, normalized. The memory is constant during a step, so gradient accumulation gives the result of the whole
  batch. If a step holds several draws of a clip (``training.draws_per_clip``), their embeddings are averaged and the
  memory moves once (ours: the result must not depend on which draw was last). No position is written twice and there
  is no atomic addition, so the result on a GPU is deterministic.
- ``partition``: Z, one number for both directions; 0 = not computed yet. With gradient accumulation, the first batch is
  the first *micro-batch* of the first step, over all processes, because that forward pass needs Z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import normalize, one_hot, softplus

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods import register
from crisscross.methods.base import BaseMethod, Views
from crisscross.methods.crisscross import embedding_std
from crisscross.models.heads import mlp
from crisscross.utils.distributed import gather_rows
from crisscross.utils.rng import derive_key

OTHER = {"video": "audio", "audio": "video"}
"""The modality whose memory the queries of a modality are compared with."""


def nce_loss(positives: torch.Tensor, negatives: torch.Tensor, partition: torch.Tensor) -> torch.Tensor:
    """Return the NCE loss of one direction, averaged over the batch.

    Args:
        positives: s+, (B,).
        negatives: s-, (B, K).
        partition: Z, a scalar above 0.

    Returns:
        A non-negative scalar; the K terms of a query's negatives are added, not averaged.

    Example:
        >>> scores = torch.zeros(1), torch.zeros(1, 1)
        >>> nce_loss(*scores, torch.tensor(1.0))  # no better than chance: 2 log 2
        tensor(1.3863)
        >>> nce_loss(torch.tensor([9.0]), torch.tensor([[-9.0]]), torch.tensor(1.0))
        tensor(0.0002)
    """
    # -log [e^s / (e^s + c)] = softplus(log c - s) avoids large exponentials; single precision also under autocast.
    noise = (negatives.shape[1] * partition.float()).log()
    return (softplus(noise - positives.float()) + softplus(negatives.float() - noise).sum(dim=1)).mean()


def draw_negatives(clip_ids: torch.Tensor, *, num_clips: int, num_negatives: int) -> torch.Tensor:
    """Draw other clips for each clip, uniformly with replacement.

    The random numbers are from the global generator.

    Args:
        clip_ids: (B,), 0 ... num_clips - 1.
        num_clips: N, at least 2.
        num_negatives: K.

    Returns:
        (B, K) int64; row b never holds ``clip_ids[b]``.
    """
    others = torch.randint(num_clips - 1, (len(clip_ids), num_negatives), device=clip_ids.device)
    return others + (others >= clip_ids[:, None])  # skip the clip itself


@torch.no_grad()
def update_memory_(
    memory: torch.Tensor, clip_ids: torch.Tensor, embeddings: torch.Tensor, *, momentum: float
) -> torch.Tensor:
    """Move the memory of some clips towards their embeddings, in place.

    Args:
        memory: (N, D), unit vectors.
        clip_ids: (B,); a clip may occur several times: it moves once, towards the mean of its embeddings.
        embeddings: (B, D).
        momentum: fraction of the old memory that stays.
    """
    clips, place = torch.unique(clip_ids, return_inverse=True)
    draws = one_hot(place, len(clips)).to(embeddings.dtype)
    mean = (draws.T @ embeddings) / draws.sum(dim=0)[:, None]
    memory[clips] = normalize(momentum * memory[clips] + (1 - momentum) * mean, dim=1)
    return memory


@register
class AVID(BaseMethod):
    """AVID; the module's docstring describes the state and its updates."""

    num_views = 1
    replicated_buffers = ("video_memory", "audio_memory", "partition")
    partition: torch.Tensor

    def __init__(
        self,
        model: ModelSettings,
        clips: DatasetInfo,
        *,
        num_negatives: int,
        temperature: float,
        memory_momentum: float,
        head_dims: Sequence[int],
        head_batch_norm: bool,
        pool: Literal["avg", "max"],
    ) -> None:
        """Build backbones, heads and empty memories. ``AvidSettings`` checks the numbers."""
        super().__init__(model)
        self.num_clips, self.num_negatives = clips.num_clips, num_negatives
        self.temperature, self.memory_momentum = temperature, memory_momentum
        self.video_backbone.pool = pool
        self.video_head = mlp(self.video_backbone.feature_dim, head_dims, batch_norm=head_batch_norm)
        self.audio_head = mlp(self.audio_backbone.feature_dim, head_dims, batch_norm=head_batch_norm)
        for modality in OTHER:
            self.register_buffer(f"{modality}_memory", torch.zeros(clips.num_clips, head_dims[-1]))
        self.register_buffer("partition", torch.zeros(()))
        self._partition_is_known = False  # reading the buffer would synchronize the GPU in every pass
        self._seen: list[dict[str, torch.Tensor]] = []  # embeddings of the current step's micro-batches
        self.register_load_state_dict_pre_hook(_check_memory)  # type: ignore[no-untyped-call]

    def initialize_state(self, *, seed: int) -> None:
        """Draw the memories: Gaussian, normalized."""
        for modality in OTHER:
            generator = torch.Generator().manual_seed(derive_key(seed, f"memory/{modality}"))
            memory = self.get_buffer(f"{modality}_memory")
            memory.copy_(normalize(torch.randn(memory.shape, generator=generator), dim=1))

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean of both directions' losses, each loss, and collapse monitors.

        A direction takes K vectors of the memory for each query: B x K x D numbers, 1 GB for 2048 x 1024 x 128.
        """
        embeddings = {
            "video": normalize(self.video_head(self.video_backbone(views.of("video")[0])).float(), dim=1),
            "audio": normalize(self.audio_head(self.audio_backbone(views.of("audio")[0])).float(), dim=1),
        }
        scores = {modality: self._scores(z, OTHER[modality], views.clip_ids) for modality, z in embeddings.items()}
        self._set_partition([negatives for _, negatives in scores.values()])
        losses = {modality: nce_loss(*both, self.partition) for modality, both in scores.items()}
        self._store(views.clip_ids, embeddings)
        metrics = {f"loss/{modality}_to_{OTHER[modality]}": loss.detach() for modality, loss in losses.items()}
        metrics |= {f"collapse/{modality}_std": embedding_std(z) for modality, z in embeddings.items()}
        return (losses["video"] + losses["audio"]) / 2, metrics

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the memories of the step's clips, the same on every process."""
        seen = {name: gather_rows(torch.cat([one[name] for one in self._seen])) for name in ("clip_ids", *OTHER)}
        self._seen.clear()
        for modality in OTHER:
            memory = self.get_buffer(f"{modality}_memory")
            update_memory_(memory, seen["clip_ids"], seen[modality], momentum=self.memory_momentum)

    def _scores(self, queries: torch.Tensor, other: str, clip_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return s+ (B,) and s- (B, K) of queries (B, D)."""
        memory = self.get_buffer(f"{other}_memory")
        negative_ids = draw_negatives(clip_ids, num_clips=self.num_clips, num_negatives=self.num_negatives)
        with torch.autocast(queries.device.type, enabled=False):
            positives = (queries * memory[clip_ids]).sum(dim=1)
            negatives = torch.bmm(memory[negative_ids], queries[:, :, None])[:, :, 0]
        return positives / self.temperature, negatives / self.temperature

    # torch.compile would recompile for every length of the list.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _store(self, clip_ids: torch.Tensor, embeddings: Mapping[str, torch.Tensor]) -> None:
        """Store a micro-batch's embeddings until the step is done."""
        if self.training:
            self._seen.append({"clip_ids": clip_ids, **{name: z.detach() for name, z in embeddings.items()}})

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _set_partition(self, negatives: Sequence[torch.Tensor]) -> None:
        """Set Z from s- of the first batch.

        It is the mean over both directions and all processes.
        """
        if self._partition_is_known:
            return
        if self.partition == 0:  # otherwise it is from a checkpoint
            own = torch.stack(list(negatives)).exp().mean()
            self.partition.copy_(gather_rows(own[None]).mean())
        self._partition_is_known = True


def _check_memory(method: AVID, state: Mapping[str, Any], prefix: str, local: Any, strict: Any, *reports: Any) -> None:
    """Check the shape of a checkpoint's memory before PyTorch does.

    Raises:
        ValueError: if it differs from the method's; one line with both sizes.
    """
    del local, strict, reports
    method._partition_is_known = False
    for modality in OTHER:
        name = f"{modality}_memory"
        saved, own = state.get(f"{prefix}{name}"), method.get_buffer(name)
        if saved is not None and saved.shape != own.shape:
            raise ValueError(
                f"the checkpoint's {name} holds {_size(saved)}, this pretraining has {_size(own)}: it was made for"
                " other clips or another method.head_dims; use the clips and the config of that run, or start again in"
                " another runs_root"
            )


def _size(memory: torch.Tensor) -> str:
    return f"{len(memory)} clips x {math.prod(memory.shape[1:])}"
