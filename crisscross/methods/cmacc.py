"""CM-ACC: cross-modal active contrastive coding (Ma et al., ICLR 2021).

A video query identifies the audio key of its clip among others, and an audio query the video key of its clip. Keys are
outputs of momentum encoders. Negatives outside the batch are sampled actively: in every forward pass, per direction,

1. the batch's queries are scored against the keys of the batch and of a pool, with cross-entropy;
2. each pool key gets a gradient embedding, the gradient of that loss with respect to the key;
3. k-means++ seeding of the gradient embeddings selects as many pool keys as the batch has clips: keys that would change
   the queries much, and in different ways;
4. they are added to the dictionary, first in, first out; the loss is InfoNCE over the keys of batch and dictionary;
5. the batch's keys are added to the pool, first in, first out.

The publication leaves these points open; the choices are ours:

- Momentum encoders normalize by the statistics of the batch, like the online encoders (and as in MoCo); a forward pass
  does not change their running statistics. These follow those of the online encoders, with the same momentum as the
  weights, so a momentum encoder is always an average of the online ones and can be used in ``eval`` mode.
- Heads are MLPs with one hidden layer and batch normalization after each layer, including the last. Without it, in a
  trial on the demo, embeddings drifted, queries used the drift to separate the batch's keys from older ones in the
  dictionary, and training collapsed.
- Each key is stored with its clip. A key of a query's own clip (another draw in the batch, or an older key in the pool
  or the dictionary) is masked in that query's softmax: it is not a negative.
- An empty slot of the pool or the dictionary has no clip and is never used. The first passes therefore have fewer
  negatives: the first one only those of the batch; a pool with fewer keys than the batch has clips gives all its keys.
- The first seed of k-means++ is drawn uniformly. A selected key stays in the pool until newer keys replace it.
- With gradient accumulation, "the batch" is one micro-batch; the momentum encoders move once per optimizer step.

Processes: pools and dictionaries are replicated. Queries, keys and clips of all processes are gathered, and the draws
of the seeding are the same on all processes, so every process selects the same keys without further communication.
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
from crisscross.methods import register
from crisscross.methods.base import BaseMethod, Views
from crisscross.methods.crisscross import embedding_std
from crisscross.models.heads import projector
from crisscross.utils.distributed import gather_rows

OTHER = {"video": "audio", "audio": "video"}
NO_CLIP = -1


class KeyQueue(nn.Module):
    """A first-in, first-out queue of keys and their clips.

    The newest keys are first, empty slots last.

    Attributes:
        keys: (size, D), unit vectors.
        clips: (size,), rows of the training split; ``NO_CLIP`` in an empty slot.
    """

    keys: torch.Tensor
    clips: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        """Create an empty queue."""
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("clips", torch.full((size,), NO_CLIP))

    def put(self, keys: torch.Tensor, clips: torch.Tensor) -> None:
        """Insert (B, D) keys of (B,) clips; drop the oldest keys."""
        size = len(self.clips)
        self.keys.copy_(torch.cat([keys, self.keys])[:size])
        self.clips.copy_(torch.cat([clips, self.clips])[:size])

    def held(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys of the occupied slots and their clips.

        Returns:
            Keys, (n, D), and clips, (n,).
        """
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
    """Return scores of queries against keys, with false negatives masked.

    Args:
        queries: (Q, D), unit vectors.
        keys: (K, D), unit vectors.
        query_clips: (Q,).
        key_clips: (K,).
        positives: (Q,), index of each query's positive key.
        temperature: divides the cosines.

    Returns:
        (Q, K), minus infinity where a key is of the query's clip but not its positive.

    Example:
        InfoNCE is the cross-entropy of the scores; here a positive of cosine 1 and one negative of cosine 0.

        >>> clips, first = torch.tensor([7]), torch.tensor([0])
        >>> settings = {"key_clips": torch.tensor([7, 8]), "positives": first, "temperature": 1.0}
        >>> scores = contrast(torch.eye(2)[:1], torch.eye(2), query_clips=clips, **settings)
        >>> cross_entropy(scores, first)  # log(1 + 1 / e)
        tensor(0.3133)
    """
    own = query_clips[:, None] == key_clips[None, :]
    own[torch.arange(len(queries), device=own.device), positives] = False
    return (queries @ keys.T / temperature).masked_fill(own, float("-inf"))


def gradient_embeddings(scores: torch.Tensor, queries: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the gradient of the queries' cross-entropy at the keys.

    The cross-entropy is summed over the queries. The score of query i against key p is s_ip = q_i . k_p / temperature,
    so the gradient at k_p is the sum over i of softmax(s_i)_p q_i / temperature.

    Args:
        scores: (Q, K), of all keys, from ``contrast``.
        queries: (Q, D).
        temperature: that of the scores.

    Returns:
        (K, D); rows of positive keys lack the term of the positive.
    """
    return scores.softmax(dim=1).T @ queries / temperature


def kmeans_seeds(points: torch.Tensor, num_seeds: int, generator: torch.Generator) -> torch.Tensor:
    """Select points by the seeding of k-means++ (Arthur and Vassilvitskii, 2007).

    The first is drawn uniformly, each later one with a probability proportional to its squared distance from the
    nearest selected point. A draw is an exponential race: each point waits an exponentially distributed time of that
    rate, and the point with the shortest time is selected. Unlike inverse transform sampling, a race needs no
    cumulative sum, which two devices may round differently.

    Args:
        points: (N, D).
        num_seeds: at most N. Points that equal a selected one come last, in their order.
        generator: on the device of the points; N draws per seed.

    Returns:
        (num_seeds,), different rows of ``points``, in order of selection.
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


@register
class CMACC(BaseMethod):
    """CM-ACC; ``CmaccSettings`` checks the numbers."""

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
        """Build the encoders with their heads, and empty pools and dictionaries.

        The encoders are online and momentum encoders.
        """
        del clips  # CmaccSettings checks them
        super().__init__(model)
        self._temperature, self._encoder_momentum = temperature, encoder_momentum
        for modality in OTHER:
            backbone = self.backbone(modality)
            head = projector(backbone.feature_dim, hidden_dim=hidden_dim, output_dim=embedding_dim, num_layers=2)
            self.add_module(f"{modality}_head", head)
            self.add_module(f"{modality}_momentum", _follower(nn.Sequential(backbone, head)))
            self.add_module(f"pool_{modality}", KeyQueue(pool_size, embedding_dim))
            self.add_module(f"dictionary_{modality}", KeyQueue(dictionary_size, embedding_dim))

    def initialize_state(self, *, seed: int) -> None:
        """Copy the online encoders to the momentum encoders."""
        del seed
        self._follow(momentum=0.0)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters that require a gradient, as ``base``."""
        return {"base": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def after_step(self) -> None:
        """Move momentum encoders, with their running statistics, towards the online ones."""
        self._follow(momentum=self._encoder_momentum)

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sum of both directions' losses, each loss, and collapse monitors.

        The loss is that of this process's queries against the keys of all processes.
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

    # torch.compile would unroll a loop with as many iterations as the batch has clips.
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
        """Do steps 1 to 4: move selected keys to the dictionary.

        The keys are from the pool.
        """
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
        """Return InfoNCE of this process's queries over batch and dictionary."""
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
                else:  # the counter of batches is an integer
                    value.copy_(online[key])


def _follower(encoder: nn.Sequential) -> nn.Sequential:
    """Return a copy without gradients whose running statistics no forward pass changes."""
    follower = copy.deepcopy(encoder).requires_grad_(False)
    for part in follower.modules():
        if isinstance(part, _NormBase):
            part.track_running_stats = False  # in training mode: normalize by the batch, do not update statistics
    return follower
