"""Fine-tuning (as in the paper): train a video backbone and a new head on labels, then test on ten segments per clip.

Training uses the same loop as pretraining; the test uses the feature extractor, with logits as features. Both resume
after an interruption.

During fine-tuning, batch normalization is in training mode: it uses the statistics of the batch and updates the running
ones (ours: the paper does not specify this; batches of 32 and 64 are large enough, and the pretraining's statistics are
of other clips of another size). While the backbone is frozen, it is in eval mode.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.data.decoded_cache import open_cache
from crisscross.data.loader import Clips, SegmentDataset
from crisscross.data.staging import stage_manifest
from crisscross.evaluation.backbones import backbones_of
from crisscross.evaluation.folds import folds_of, require_streams
from crisscross.evaluation.results import Results, write_results
from crisscross.methods.base import Trainable, Views
from crisscross.models.heads import classifier
from crisscross.models.init import initialize
from crisscross.models.video_base import VideoNetwork
from crisscross.run.run_dir import RunDirectory
from crisscross.training.features import Extraction, FeatureStore, extract, reporter
from crisscross.training.trainer import Task, Trainer
from crisscross.utils.distributed import choose_device, join_world
from crisscross.utils.files import write_atomically
from crisscross.utils.rng import derive_key
from crisscross.utils.signals import Preempted

logger = logging.getLogger(__name__)
CLASSIFIER_FILE = "classifier.pt"
PIXELS_PER_PASS = 32 * 8 * 224 * 224  # ours: 32 segments of 8 frames, or 8 of 32
"""Pixels in one forward pass of the test."""


class Finetuning(Trainable):
    """A video backbone and a head, trained by cross-entropy."""

    num_views = 1

    def __init__(self, backbone: VideoNetwork, head: nn.Module, *, freeze_backbone_epochs: int = 0) -> None:
        """Combine a backbone and a head.

        Args:
            backbone: (B, 3, T, H, W) -> (B, D).
            head: (B, D) -> (B, K).
            freeze_backbone_epochs: number of epochs in which only the head is trained.
        """
        super().__init__()
        self.video_backbone = backbone
        self.head = head
        self.freeze_backbone_epochs = freeze_backbone_epochs
        self.uses_all_parameters = freeze_backbone_epochs == 0

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the cross-entropy and top-1 accuracy of a batch."""
        frozen = views.epoch < self.freeze_backbone_epochs
        self.video_backbone.train(not frozen)
        with torch.set_grad_enabled(not frozen):
            features = self.video_backbone(views.of("video")[0])
        logits = self.head(features).float()
        hits = logits.detach().argmax(dim=1) == views.labels
        return F.cross_entropy(logits, views.labels), {"train/top1": hits.float().mean()}


def build_network(settings: DownstreamSettings, backbone: VideoNetwork, *, num_classes: int) -> Finetuning:
    """Return the initial network: the given backbone and a new head.

    The head is initialized from the seed.
    """
    chosen = settings.finetuning.head
    backbone.pool = chosen.pool
    head = classifier(
        backbone.feature_dim,
        num_classes,
        hidden_dim=chosen.hidden_dim,
        batch_norm=chosen.batch_norm,
        dropout=chosen.dropout,
    )
    initialize(head, seed_key=derive_key(settings.seed, "head"))
    return Finetuning(backbone, head, freeze_backbone_epochs=settings.finetuning.freeze_backbone_epochs)


def finetune(run: RunDirectory) -> bool:
    """Fine-tune and test, resuming from the run directory.

    Args:
        run: the experiment's run directory.

    Returns:
        True if ``result.json`` is written (by rank 0); False if the job got a shutdown signal.

    Raises:
        ValueError: if a setting, a weights file or the split is invalid; one line.
        DecodeError: if a clip cannot be decoded any more; the message names it.
        NonFiniteLossError: if the loss is not finite; the message names the step and the clips.
        CheckpointError: if a checkpoint cannot be written.
    """
    settings = parse(DownstreamSettings, run.config)
    torch.set_num_threads(settings.execution.num_threads)
    with join_world(settings.execution.device) as world:
        manifest = stage_manifest(run, settings.data, world, splits=settings.data.splits)
        (fold,) = folds_of(manifest, settings.data)
        require_streams(fold, "v", asked_by="fine-tuning", remedy="")
        cache = open_cache(manifest, settings.data, settings.views)
        task = _task(run, settings, Clips(fold.train, manifest.root, cache), num_classes=len(manifest.classes))
        trainer = Trainer(run, task, world)
        if not trainer.run_to_end():
            return False
        if not world.is_main_process:  # only rank 0 tests
            return True
        trained = trainer.summary()
    network = trainer.network
    _export(network, run.path / CLASSIFIER_FILE)
    try:
        scores = dense_scores(run, settings, network, Clips(fold.test, manifest.root, cache))
    except Preempted as signal_name:
        logger.info("%s: stopped in the test; the training and the scores so far are stored", signal_name)
        return False
    results = Results(manifest.classes, num_folds=1)
    of_label = scores[np.arange(len(scores)), fold.test["label_id"]]
    columns = {"probability_v": scores.max(axis=1), "probability_of_label_v": of_label}
    results.add_scores(fold, "v", scores, {}, columns=columns)
    write_results(run, results, trained={**trained, "classifier": CLASSIFIER_FILE})
    return True


def _task(run: RunDirectory, settings: DownstreamSettings, clips: Clips, *, num_classes: int) -> Task[Finetuning]:
    protocol = settings.finetuning
    backbone = backbones_of(run, settings).video_backbone
    return Task(
        phase="fine-tuning",
        network=build_network(settings, backbone, num_classes=num_classes),
        clips=clips,
        views=settings.views,
        relaxation="none",
        modalities="v",
        optim=protocol.optim,
        training=protocol.training,
        execution=settings.execution,
        tracking=settings.tracking,
        seed=settings.seed,
        node="downstream.training",
    )


def _export(network: Finetuning, path: Path) -> None:
    """Write the fine-tuned weights: a state dict of ``video_backbone.*`` and ``head.*``."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda file: torch.save(state, file))


def dense_scores(run: RunDirectory, settings: DownstreamSettings, network: Finetuning, clips: Clips) -> np.ndarray:
    """Average the probabilities of evenly spaced segments of every test clip.

    Args:
        run: run directory in which logits are stored, so that an interrupted test can be resumed.
        settings: number of segments (``views.evaluation_clips``) and their crops.
        network: the fine-tuned network.
        clips: the test split, N clips.

    Returns:
        (N, K) float64 probabilities.

    Raises:
        Preempted: if the process got a shutdown signal.
    """
    network.eval()
    device = choose_device(settings.execution.device)
    store = FeatureStore(run.path / "features" / "logits", len(clips), settings.views.evaluation_clips)
    extraction = Extraction(
        networks={"v": lambda frames: _logits(network, frames)},
        dataset=SegmentDataset(clips, settings.views, modalities="v"),
        views=settings.views,
        execution=settings.execution,
        device=device,
    )
    extract(store, extraction, report=reporter(run, phase="test", num_clips=len(clips)))
    return softmax(store.array("v").astype(np.float64), axis=-1).mean(axis=1)


def _logits(network: Finetuning, frames: torch.Tensor) -> torch.Tensor:
    """Map frames (B, 3, T, H, W) to logits (B, K).

    It takes some segments at a time to save GPU memory.
    """
    at_a_time = max(1, PIXELS_PER_PASS // frames[0, 0].numel())
    return torch.cat([network.head(network.video_backbone(part)) for part in torch.split(frames, at_a_time)])
