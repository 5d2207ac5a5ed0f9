"""AVID: cross-modal instance discrimination (Morgado et al., CVPR 2021).

One view of a clip gives a video embedding and an audio embedding, l2-normalised. A memory holds one unit vector a clip
and modality. A query of one modality has to tell the *other* modality's memory of its own clip (score s+) from those of
K other clips (s-), by noise-contrastive estimation; a score is a dot product over the temperature:

    L = - log [e^{s+} / (e^{s+} + K Z)] - sum over the K negatives of log [K Z / (e^{s-} + K Z)]

averaged over the batch; the loss is half of the video queries' and half of the audio queries'. Z is the mean of e^{s-}
in the very first batch, and constant from then on.

State, all of it in buffers and so in every checkpoint, *replicated* on every process (two times 0.9 GB for the 1.8 M
clips of AudioSet), where each changes it by the same sums:

- ``video_memory`` and ``audio_memory``: Gaussian, normalised. After each optimiser step the clips of the step move to
  the embeddings that they had in it, those of all passes and all processes: momentum x memory + (1 - momentum) x
  embedding, normalised. So the memory stands still during a step, and gradient accumulation sees what a whole batch
  would. Of a clip that was drawn several times in one step (``training.draws_per_clip``) the embeddings are averaged
  and the memory moves once (chosen by us: which draw came last must not matter). No position is written twice and
  nothing is added atomically, so a GPU gets the same bits every time.
- ``partition``: Z, one number for both directions; 0 = not known yet. Where gradients are accumulated, the first batch
  is the first *pass* of the first step, over all processes: that pass needs it already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import normalize, one_hot, softplus

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods.base import BaseMethod, Views
from crisscross.methods.crisscross import embedding_std
from crisscross.models.heads import mlp
from crisscross.utils.distributed import gather_rows
from crisscross.utils.rng import derive_key

OTHER = {"video": "audio", "audio": "video"}
"""Whose memory the queries of a modality are compared with."""


def nce_loss(positives: torch.Tensor, negatives: torch.Tensor, partition: torch.Tensor) -> torch.Tensor:
    """Return the loss of one direction, averaged over the batch.

    Args:
        positives: s+, (B,).
        negatives: s-, (B, K).
        partition: Z, a scalar above 0.

    Returns:
        A scalar, not negative; the K terms of a query's negatives are added, not averaged.
    """
    # -log [e^s / (e^s + c)] = softplus(log c - s), without a large exponential; single precision also under autocast.
    noise = (negatives.shape[1] * partition.float()).log()
    return (softplus(noise - positives.float()) + softplus(negatives.float() - noise).sum(dim=1)).mean()


def draw_negatives(clip_ids: torch.Tensor, *, num_clips: int, num_negatives: int) -> torch.Tensor:
    """Draw other clips for each clip, uniformly and with replacement, from the global generator.

    Args:
        clip_ids: (B,), 0 ... num_clips - 1.
        num_clips: N, at least 2.
        num_negatives: K.

    Returns:
        (B, K) int64; row b never holds ``clip_ids[b]``.
    """
    others = torch.randint(num_clips - 1, (len(clip_ids), num_negatives), device=clip_ids.device)
    return others + (others >= clip_ids[:, None])  # the numbers from the clip's own on stand for the next one


@torch.no_grad()
def update_memory_(
    memory: torch.Tensor, clip_ids: torch.Tensor, embeddings: torch.Tensor, *, momentum: float
) -> torch.Tensor:
    """Move the memory of some clips towards their embeddings, in place.

    Args:
        memory: (N, D), unit vectors.
        clip_ids: (B,); a clip may be there several times: it moves once, towards the mean of its embeddings.
        embeddings: (B, D).
        momentum: how much of the old memory stays.
    """
    clips, place = torch.unique(clip_ids, return_inverse=True)
    draws = one_hot(place, len(clips)).to(embeddings.dtype)
    mean = (draws.T @ embeddings) / draws.sum(dim=0)[:, None]
    memory[clips] = normalize(momentum * memory[clips] + (1 - momentum) * mean, dim=1)
    return memory


class Method(BaseMethod):
    """AVID. What is replicated and when it changes is said at the top of this file."""

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
        """Build backbones, heads and empty memories. What the numbers may be, ``AvidSettings`` says."""
        super().__init__(model)
        self.num_clips, self.num_negatives = clips.num_clips, num_negatives
        self.temperature, self.memory_momentum = temperature, memory_momentum
        self.video_backbone.pool = pool
        self.video_head = mlp(self.video_backbone.feature_dim, head_dims, batch_norm=head_batch_norm)
        self.audio_head = mlp(self.audio_backbone.feature_dim, head_dims, batch_norm=head_batch_norm)
        for modality in OTHER:
            self.register_buffer(f"{modality}_memory", torch.zeros(clips.num_clips, head_dims[-1]))
        self.register_buffer("partition", torch.zeros(()))
        self._partition_is_known = False  # asking the buffer would make the host wait for the GPU in every pass
        self._seen: list[dict[str, torch.Tensor]] = []  # the passes of the step that is going on
        self.register_load_state_dict_pre_hook(_check_memory)  # type: ignore[no-untyped-call]

    def initialise_state(self, *, seed: int) -> None:
        """Draw the memories: Gaussian, normalised."""
        for modality in OTHER:
            generator = torch.Generator().manual_seed(derive_key(seed, f"memory/{modality}"))
            memory = self.get_buffer(f"{modality}_memory")
            memory.copy_(normalize(torch.randn(memory.shape, generator=generator), dim=1))

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean of both directions' losses, each of them, and the collapse monitors.

        A direction takes K vectors of the memory for each query: B x K x D numbers, 1 GB for 2048 x 1024 x 128.
        """
        embeddings = {
            "video": normalize(self.video_head(self.video_backbone(views.of("video")[0])).float(), dim=1),
            "audio": normalize(self.audio_head(self.audio_backbone(views.of("audio")[0])).float(), dim=1),
        }
        scores = {modality: self._scores(z, OTHER[modality], views.clip_ids) for modality, z in embeddings.items()}
        self._learn_partition([negatives for _, negatives in scores.values()])
        losses = {modality: nce_loss(*both, self.partition) for modality, both in scores.items()}
        self._remember(views.clip_ids, embeddings)
        metrics = {f"loss/{modality}_to_{OTHER[modality]}": loss.detach() for modality, loss in losses.items()}
        metrics |= {f"collapse/{modality}_std": embedding_std(z) for modality, z in embeddings.items()}
        return (losses["video"] + losses["audio"]) / 2, metrics

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the memories of all clips of the step, on every process alike."""
        seen = {name: gather_rows(torch.cat([one[name] for one in self._seen])) for name in ("clip_ids", *OTHER)}
        self._seen.clear()
        for modality in OTHER:
            memory = self.get_buffer(f"{modality}_memory")
            update_memory_(memory, seen["clip_ids"], seen[modality], momentum=self.memory_momentum)

    def _scores(self, queries: torch.Tensor, other: str, clip_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return s+ (B,) and s- (B, K) of queries (B, D) with the other modality's memory."""
        memory = self.get_buffer(f"{other}_memory")
        negative_ids = draw_negatives(clip_ids, num_clips=self.num_clips, num_negatives=self.num_negatives)
        with torch.autocast(queries.device.type, enabled=False):
            positives = (queries * memory[clip_ids]).sum(dim=1)
            negatives = torch.bmm(memory[negative_ids], queries[:, :, None])[:, :, 0]
        return positives / self.temperature, negatives / self.temperature

    # It would be compiled anew for every length of the list.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _remember(self, clip_ids: torch.Tensor, embeddings: Mapping[str, torch.Tensor]) -> None:
        """Keep what a pass has seen until the step is done."""
        if self.training:
            self._seen.append({"clip_ids": clip_ids, **{name: z.detach() for name, z in embeddings.items()}})

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _learn_partition(self, negatives: Sequence[torch.Tensor]) -> None:
        """Set Z from the first batch's s-, those of both directions and all processes; later batches change nothing."""
        if self._partition_is_known:
            return
        if self.partition == 0:  # else it comes from a checkpoint
            own = torch.stack(list(negatives)).exp().mean()
            self.partition.copy_(gather_rows(own[None]).mean())
        self._partition_is_known = True


def _check_memory(
    method: Method, state: Mapping[str, Any], prefix: str, local: Any, strict: Any, *reports: Any
) -> None:
    """Refuse the memory of another set of clips, before PyTorch does in several lines; and look at Z again."""
    del local, strict, reports
    method._partition_is_known = False
    for modality in OTHER:
        name = f"{modality}_memory"
        saved, own = state.get(f"{prefix}{name}"), method.get_buffer(name)
        if saved is not None and saved.shape != own.shape:
            raise ValueError(
                f"the checkpoint's {name} holds {_size(saved)}, this pretraining has {_size(own)}: it was made for"
                " other clips or another method.head_dims; take the clips and the config of that run, or begin anew in"
                " another runs_root"
            )


def _size(memory: torch.Tensor) -> str:
    return f"{len(memory)} clips x {math.prod(memory.shape[1:])}"
