"""CM-ACC: cross-modal active contrastive coding (Ma et al., ICLR 2021).

A video query is to find the audio key of its clip among others, and an audio query the video key of its clip. Keys come
from momentum encoders. The negatives beyond the batch are chosen actively: in every pass, and in each direction,

1. the batch's queries are scored against the keys of the batch and of a pool, with cross-entropy;
2. each pool key gets a gradient embedding, the gradient of that loss with respect to the key;
3. as many pool keys as the batch has clips are picked by k-means++ seeding of the gradient embeddings: keys that would
   change the queries much, and in different ways;
4. they join the dictionary, first in, first out; the loss is InfoNCE over the keys of the batch and the dictionary;
5. the batch's keys join the pool, first in, first out.

What is not published, and was chosen by us:

- Momentum encoders normalise by the statistics of the batch, as the encoders that they follow do (and as in MoCo);
  going forward leaves their running statistics alone. These follow those of the online encoders, with the same momentum
  as the weights, so that a momentum encoder is at any time an average of the online ones, fit for ``eval`` mode.
- Heads are MLPs of one hidden layer that are normalised after each layer, the last one too. Without it, in a trial on
  the demo, embeddings drifted: queries told the batch's keys from the dictionary's old ones by that, and collapsed.
- Keys are kept together with their clips. A key of a query's own clip (another draw in the batch, or an old one in the
  pool or the dictionary) is left out of that query's softmax: it is no negative.
- An empty place of the pool or the dictionary belongs to no clip and is never used. In the first passes there are
  therefore fewer negatives: none but the batch's in the first one, and a pool of fewer keys than the batch has clips
  gives all it has.
- The first seed of k-means++ is drawn uniformly. A key that was chosen stays in the pool until its turn comes.
- With accumulation, "the batch" is one forward pass; the momentum encoders move once an optimiser step.

Processes: pools and dictionaries are replicated. Queries, keys and clips of all processes are gathered, and the draws
of the seeding are those that all processes make alike, so every process makes the same choice by itself.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.modules.batchnorm import _NormBase

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods.base import BaseMethod, Views
from crisscross.methods.crisscross import embedding_std
from crisscross.models.heads import projector
from crisscross.utils.distributed import gather_rows

OTHER = {"video": "audio", "audio": "video"}
NO_CLIP = -1


class KeyQueue(nn.Module):
    """Keys and the clips that they are of, first in, first out; the newest come first, the empty places last.

    Attributes:
        keys: (size, D), unit vectors.
        clips: (size,), rows of the training split; ``NO_CLIP`` in an empty place.
    """

    keys: torch.Tensor
    clips: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        """Make an empty one."""
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("clips", torch.full((size,), NO_CLIP))

    def put(self, keys: torch.Tensor, clips: torch.Tensor) -> None:
        """Put (B, D) keys of (B,) clips in front; what no longer has a place is forgotten."""
        size = len(self.clips)
        self.keys.copy_(torch.cat([keys, self.keys])[:size])
        self.clips.copy_(torch.cat([clips, self.clips])[:size])

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys that there are, (n, D), and their clips, (n,)."""
        num_held = int((self.clips != NO_CLIP).sum())
        return self.keys[:num_held], self.clips[:num_held]


def contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    *,
    query_clips: torch.Tensor,
    key_clips: torch.Tensor,
    positives: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return the scores of queries against keys, those of a query's own clip masked except for its positive.

    Args:
        queries: (Q, D), unit vectors.
        keys: (K, D), unit vectors.
        query_clips: (Q,).
        key_clips: (K,).
        positives: (Q,), which key is the query's positive.
        temperature: what the cosine is divided by.

    Returns:
        (Q, K), minus infinity where a key is neither the positive nor of another clip.
    """
    own = query_clips[:, None] == key_clips[None, :]
    own[torch.arange(len(queries), device=own.device), positives] = False
    return (queries @ keys.T / temperature).masked_fill(own, float("-inf"))


def gradient_embeddings(scores: torch.Tensor, queries: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the gradient of the queries' summed cross-entropy with respect to keys that are nobody's positive.

    The score of query i against key p is s_ip = q_i . k_p / temperature, so the gradient at k_p is the sum over i of
    softmax(s_i)_p q_i / temperature.

    Args:
        scores: (Q, K), of all keys, from ``contrast``.
        queries: (Q, D).
        temperature: that of the scores.

    Returns:
        (K, D); the rows of keys that are a positive lack that term.
    """
    return scores.softmax(dim=1).T @ queries / temperature


def kmeans_seeds(points: torch.Tensor, num_seeds: int, generator: torch.Generator) -> torch.Tensor:
    """Pick points as k-means++ seeds its centres (Arthur and Vassilvitskii, 2007): far from those picked before.

    The first is drawn uniformly, each later one with a probability in proportion to its squared distance from the
    nearest before. A draw is a race: a point waits an exponentially distributed time of that rate, the first to come is
    picked. Unlike a search in cumulated probabilities, a race has no sum that two devices may round differently.

    Args:
        points: (N, D).
        num_seeds: at most N. Points that equal one picked before come last, in their order.
        generator: on the device of the points; N draws a seed.

    Returns:
        (num_seeds,), different rows of ``points``, in the order in which they were picked.
    """
    points = points.double()  # squares of small softmax probabilities may be too small for single precision
    rates = torch.ones_like(points[:, 0])
    taken = torch.zeros_like(rates, dtype=torch.bool)
    picked = []
    for index in range(num_seeds):
        waits = torch.empty_like(rates).exponential_(generator=generator).clamp_min(torch.finfo(rates.dtype).tiny)
        place = (rates / waits).masked_fill(taken, -1.0).argmax().view(1)
        picked.append(place)
        taken.index_fill_(0, place, True)
        distances = (points - points.index_select(0, place)).square().sum(dim=1)
        rates = distances if index == 0 else torch.minimum(rates, distances)
    return torch.cat(picked) if picked else torch.zeros(0, dtype=torch.long, device=points.device)


class Method(BaseMethod):
    """CM-ACC. What the numbers may be, ``CmaccSettings`` says."""

    num_views = 1
    replicated_buffers = tuple(
        f"{queue}_{modality}.{name}"
        for queue in ("pool", "dictionary")
        for modality in OTHER
        for name in ("keys", "clips")
    )

    def __init__(
        self,
        model: ModelSettings,
        clips: DatasetInfo,
        *,
        hidden_dim: int,
        embedding_dim: int,
        temperature: float,
        encoder_momentum: float,
        pool_size: int,
        dictionary_size: int,
    ) -> None:
        """Build online and momentum encoders, heads of one hidden layer included, and empty pools and dictionaries."""
        del clips  # CmaccSettings has looked at them
        super().__init__(model)
        self._temperature, self._encoder_momentum = temperature, encoder_momentum
        for modality in OTHER:
            backbone = self.backbone(modality)
            head = projector(backbone.feature_dim, hidden_dim=hidden_dim, output_dim=embedding_dim, num_layers=2)
            self.add_module(f"{modality}_head", head)
            self.add_module(f"{modality}_momentum", _follower(nn.Sequential(backbone, head)))
            self.add_module(f"pool_{modality}", KeyQueue(pool_size, embedding_dim))
            self.add_module(f"dictionary_{modality}", KeyQueue(dictionary_size, embedding_dim))

    def initialise_state(self, *, seed: int) -> None:
        """Let the momentum encoders start as the online ones do."""
        del seed
        self._follow(momentum=0.0)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Everything that has a gradient."""
        return {"base": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def after_step(self) -> None:
        """Move the momentum encoders towards the online ones, running statistics of normalisations included."""
        self._follow(momentum=self._encoder_momentum)

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of both directions, added, each of them, and the collapse monitors.

        The loss is that of this process's queries among the keys of all processes.
        """
        inputs = {name: views.of(name)[0] for name in OTHER}
        queries = {name: self._embed(inputs[name], *self._online(name)) for name in OTHER}
        with torch.no_grad():
            keys = {name: gather_rows(self._embed(inputs[name], self._momentum(name))) for name in OTHER}
        clips = gather_rows(views.clip_ids)
        generator = views.generator()
        losses = {}
        with torch.autocast(clips.device.type, enabled=False):
            for name, other in OTHER.items():
                self._choose(other, gather_rows(queries[name]), keys[other], clips, generator)
                loss = self._loss(other, queries[name], keys[other], clips)
                losses[f"loss/{name}_to_{other}"] = loss
        for name in OTHER:
            self._queue("pool", name).put(keys[name], clips)
        metrics = {name: loss.detach() for name, loss in losses.items()}
        metrics |= {f"collapse/{name}_std": embedding_std(queries[name]) for name in OTHER}
        return losses["loss/video_to_audio"] + losses["loss/audio_to_video"], metrics

    # A loop of as many turns as the batch has clips.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _choose(
        self,
        modality: str,
        queries: torch.Tensor,
        keys: torch.Tensor,
        clips: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Move the keys of a modality that matter to all processes' queries from the pool to the dictionary: 1 to 4."""
        pool, pool_clips = self._queue("pool", modality).held()
        scores = contrast(
            queries,
            torch.cat([keys, pool]),
            query_clips=clips,
            key_clips=torch.cat([clips, pool_clips]),
            positives=torch.arange(len(clips), device=clips.device),
            temperature=self._temperature,
        )
        points = gradient_embeddings(scores, queries, temperature=self._temperature)[len(keys) :]
        chosen = kmeans_seeds(points, min(len(clips), len(points)), generator)
        self._queue("dictionary", modality).put(pool[chosen], pool_clips[chosen])

    def _loss(self, modality: str, queries: torch.Tensor, keys: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Return InfoNCE of this process's queries over the batch's keys, of all processes, and the dictionary."""
        negatives, negative_clips = self._queue("dictionary", modality).held()
        first = len(queries) * (dist.get_rank() if dist.is_initialized() else 0)
        positives = torch.arange(first, first + len(queries), device=clips.device)
        scores = contrast(
            queries,
            torch.cat([keys, negatives]),
            query_clips=clips[positives],
            key_clips=torch.cat([clips, negative_clips]),
            positives=positives,
            temperature=self._temperature,
        )
        return cross_entropy(scores, positives)

    @staticmethod
    def _embed(inputs: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
        """Return unit vectors (B, D) in single precision."""
        for layer in layers:
            inputs = layer(inputs)
        return normalize(inputs.float(), dim=-1)

    def _online(self, modality: str) -> tuple[nn.Module, nn.Module]:
        return self.get_submodule(f"{modality}_backbone"), self.get_submodule(f"{modality}_head")

    def _momentum(self, modality: str) -> nn.Module:
        return self.get_submodule(f"{modality}_momentum")

    def _queue(self, kind: str, modality: str) -> KeyQueue:
        """Return the ``pool`` or the ``dictionary`` of a modality's keys."""
        return getattr(self, f"{kind}_{modality}")

    @torch.no_grad()
    def _follow(self, *, momentum: float) -> None:
        for name in OTHER:
            online = nn.Sequential(*self._online(name)).state_dict()
            for key, value in self._momentum(name).state_dict().items():
                if value.is_floating_point() and momentum:
                    value.lerp_(online[key], 1 - momentum)
                else:  # counts of batches are no averages
                    value.copy_(online[key])


def _follower(encoder: nn.Sequential) -> nn.Sequential:
    """Return a copy that no gradient reaches and whose running statistics a forward pass leaves alone."""
    follower = copy.deepcopy(encoder).requires_grad_(False)
    for part in follower.modules():
        if isinstance(part, _NormBase):
            part.track_running_stats = False  # in training mode: normalise by the batch and remember nothing of it
    return follower
