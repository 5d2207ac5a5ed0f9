"""XDC: cross-modal deep clustering (Alwassel et al., NeurIPS 2020).

Before an epoch, both encoders extract features of every training clip, and each modality's features are clustered into
k clusters. During the epoch, the video encoder predicts the clip's *audio* cluster and the audio encoder its *video*
cluster, each through a linear head that is reset after every clustering:

    L = (CE(W_v f_v + b_v, audio cluster) + CE(W_a f_a + b_a, video cluster)) / 2

The paper trains the two encoders in alternation, each on clips that are sampled uniformly over the clusters that it
predicts. Here one batch trains both (ours: all methods share the training loop), so half of an epoch's draws are
uniform over the audio clusters, half over the video clusters, and every draw trains both encoders.

State: the cluster assignments are buffers, replicated on every process. Rank 0 clusters and broadcasts the result.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import cross_entropy

from crisscross.config.method import DatasetInfo
from crisscross.config.model import ModelSettings
from crisscross.methods import register
from crisscross.methods.base import BaseMethod, FeaturesOfAll, Views
from crisscross.methods.crisscross import embedding_std
from crisscross.utils.distributed import main_process_only
from crisscross.utils.rng import derive_key, generator

logger = logging.getLogger(__name__)

HEAD_STD = 0.01
"""Standard deviation of a new head's weights (as in DeepCluster's classifier)."""

NEGLIGIBLE_STD = 1e-4  # ours: whitening would amplify the rounding errors of such directions
"""Directions with less than this fraction of the largest standard deviation are dropped."""

SEEDING_ROWS_PER_CLUSTER = 256
"""Rows per cluster from which k-means++ takes the initial centers, at most (faiss's default for all of k-means)."""

CHUNK_ROWS = 8192  # ours
"""Rows that are in double precision at a time."""


def whitened(features: np.ndarray, max_dims: int) -> np.ndarray:
    """Return PCA-whitened and then l2-normalised features.

    Args:
        features: (N, D).
        max_dims: number of principal components, at most; never more than min(N, D), and without components of
            negligible variance.

    Returns:
        (N, dims) float32 rows of length 1 (0 for a row that equals the mean). If all features are equal, (N, 1) zeros.
    """
    dims = min(max_dims, *features.shape)
    # In double precision: features differ little, compared with their mean. The solver draws no random numbers.
    with np.errstate(invalid="ignore"):  # ratios of a variance of 0, which are not used
        pca = PCA(dims, whiten=True, svd_solver="covariance_eigh").fit(features.astype(np.float64))
    std = np.sqrt(pca.explained_variance_)
    noise = max(NEGLIGIBLE_STD * std[0], np.finfo(np.float32).eps * np.abs(features).max())
    kept = int((std > noise).sum())  # in descending order
    rows = np.zeros((len(features), max(kept, 1)), np.float32)
    if not kept:
        return rows
    for first in range(0, len(features), CHUNK_ROWS):
        part = pca.transform(features[first : first + CHUNK_ROWS].astype(np.float64))[:, :kept]
        length = np.linalg.norm(part, axis=1, keepdims=True)
        rows[first : first + CHUNK_ROWS] = part / np.where(length > 0, length, 1.0)
    return rows


def clustered(features: np.ndarray, num_clusters: int, *, whiten_dims: int, iterations: int, seed: int) -> np.ndarray:
    """Cluster whitened features by k-means (k-means++, then Lloyd).

    scikit-learn moves a cluster that becomes empty to the point that is farthest from its center. With fewer distinct
    points than clusters, some clusters stay empty. The computation uses one thread, whatever ``execution.num_threads``
    is: another order of summation would change the bits.

    Args:
        features: (N, D), N at least ``num_clusters``.
        num_clusters: k.
        whiten_dims: see ``whitened``.
        iterations: of Lloyd's algorithm, at most.
        seed: of the initial centers.

    Returns:
        (N,) int64 in [0, k), the cluster of each clip.
    """
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)  # empty ones are expected
        rows = whitened(features, whiten_dims)
        sample = generator(seed, "seeding").permutation(len(rows))[: SEEDING_ROWS_PER_CLUSTER * num_clusters]
        centers, _ = kmeans_plusplus(rows[np.sort(sample)], num_clusters, random_state=seed % 2**32)
        return KMeans(num_clusters, init=centers, n_init=1, max_iter=iterations).fit(rows).labels_.astype(np.int64)


def balanced_draws(clusters: np.ndarray, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clips uniformly over the non-empty clusters.

    The numbers of draws per cluster differ by at most one. No clip is drawn again before all clips of its cluster are
    drawn.

    Args:
        clusters: (N,), the cluster of each clip.
        num_draws: S.
        rng: generator of the draws.

    Returns:
        (S,) clips, cluster after cluster.
    """
    present, place, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    draws = np.full(len(present), num_draws // len(present))
    draws[rng.permutation(len(present))[: num_draws % len(present)]] += 1
    clips = rng.permutation(len(clusters))
    clips = clips[np.argsort(place[clips], kind="stable")]  # cluster after cluster, in random order within each
    of_cluster = np.repeat(np.arange(len(present)), draws)
    turn = np.arange(num_draws) - np.repeat(np.cumsum(draws) - draws, draws)
    return clips[(np.cumsum(sizes) - sizes)[of_cluster] + turn % sizes[of_cluster]]


@register
class XDC(BaseMethod):
    """XDC: each encoder predicts the clusters of the other.

    Buffers: ``video_clusters`` and ``audio_clusters``, (N,) int64, computed from the encoder of that name, -1 before
    the first clustering, and ``clusters_epoch``, the epoch before which they were computed.

    Example:
        >>> logits, audio_cluster = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([2])
        >>> cross_entropy(logits, audio_cluster)  # the loss of the video encoder at chance level: log 3
        tensor(1.0986)
    """

    num_views = 1
    needs_epoch_start = True
    custom_sampling = True
    replicated_buffers = ("video_clusters", "audio_clusters", "clusters_epoch")
    video_clusters: torch.Tensor
    audio_clusters: torch.Tensor
    clusters_epoch: torch.Tensor

    def __init__(
        self,
        model: ModelSettings,
        clips: DatasetInfo,
        *,
        num_clusters: int,
        recluster_every_epochs: int,
        whiten_dims: int,
        kmeans_iterations: int,
    ) -> None:
        """Build backbones, heads and buffers. ``XDCSettings`` checks the numbers."""
        super().__init__(model)
        self._every, self._num_clusters = recluster_every_epochs, num_clusters
        self._clustering = {"whiten_dims": whiten_dims, "iterations": kmeans_iterations}
        self.video_head = nn.Linear(self.video_backbone.feature_dim, num_clusters)
        self.audio_head = nn.Linear(self.audio_backbone.feature_dim, num_clusters)
        self.register_buffer("video_clusters", torch.full((clips.num_clips,), -1))
        self.register_buffer("audio_clusters", torch.full((clips.num_clips,), -1))
        self.register_buffer("clusters_epoch", torch.tensor(-1))

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean of both cross-entropies, and metrics."""
        total, metrics = torch.zeros((), device=views.clip_ids.device), {}
        for modality, clusters in (("video", self.audio_clusters), ("audio", self.video_clusters)):
            features = self.backbone(modality)(views.of(modality)[0])
            logits, targets = self.get_submodule(f"{modality}_head")(features).float(), clusters[views.clip_ids]
            loss = cross_entropy(logits, targets)
            total = total + loss / 2
            metrics[f"loss/{modality}"] = loss.detach()
            metrics[f"clusters/{modality}_accuracy"] = (logits.detach().argmax(dim=1) == targets).float().mean()
            metrics[f"collapse/{modality}_std"] = embedding_std(features)
        return total, metrics

    def on_epoch_start(self, epoch: int, features_of_all: FeaturesOfAll, *, seed: int) -> Sequence[nn.Parameter]:
        """Cluster and reset the heads, every ``recluster_every_epochs``; return the heads' parameters."""
        if epoch % self._every:
            return ()
        self.eval()
        read = features_of_all({"v": self.video_backbone, "a": self.audio_backbone})
        made = main_process_only(lambda: [self._cluster(name, read[name[0]], seed=seed) for name in ("video", "audio")])
        for name, clusters in zip(("video", "audio"), made, strict=True):
            self.get_buffer(f"{name}_clusters").copy_(torch.from_numpy(clusters))
        self.clusters_epoch.fill_(epoch)
        return self._reset_heads(seed)

    def epoch_indices(self, num_samples: int, *, seed: int) -> np.ndarray:
        """Draw uniformly over clusters: half over the audio's, half over the video's."""
        rng = generator(seed, "clips")
        half = num_samples // 2
        by_audio = balanced_draws(self.audio_clusters.cpu().numpy(), num_samples - half, rng)
        by_video = balanced_draws(self.video_clusters.cpu().numpy(), half, rng)
        return rng.permutation(np.concatenate([by_audio, by_video]))

    def _cluster(self, name: str, read: Callable[[], np.ndarray], *, seed: int) -> np.ndarray:
        started = time.monotonic()
        key = derive_key(seed, f"clusters/{name}")
        clusters = clustered(read(), self._num_clusters, **self._clustering, seed=key)
        sizes = np.bincount(clusters, minlength=self._num_clusters)
        logger.info(
            "%s: %d of %d clusters have clips, the largest %d of %d; %.1f s",
            *(name, (sizes > 0).sum(), len(sizes), sizes.max(), len(clusters), time.monotonic() - started),
        )
        return clusters

    @torch.no_grad()
    def _reset_heads(self, seed: int) -> list[nn.Parameter]:
        for name, head in (("video_head", self.video_head), ("audio_head", self.audio_head)):
            weights = torch.empty(head.weight.shape)  # on the CPU, so that all devices get the same values
            head.weight.copy_(weights.normal_(0.0, HEAD_STD, generator=_generator(seed, name)))
            head.bias.zero_()
        return [*self.video_head.parameters(), *self.audio_head.parameters()]


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_key(seed, purpose))
