"""Fine-tuning (PAPER section 5): the video network and a new head learn the labels; then every test clip is looked at
ten times.

Training goes through the one loop, the test through the one feature extractor, with the logits for features: both go
on where they were stopped.

While it is fine-tuned, the backbone's batch normalisation works as in any training: by the statistics of the batch,
which move the running ones (the paper is silent; batches of 32 and 64 are large enough, and the pretraining's
statistics are those of other clips, of another size). While it is frozen, it is left alone altogether.
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
from crisscross.data.loader import Clips, SegmentDataset
from crisscross.data.staging import open_clips
from crisscross.evaluation.backbones import backbones_of
from crisscross.evaluation.folds import folds_of, require_streams
from crisscross.evaluation.results import Results, write_results
from crisscross.methods.base import Trainable, Views
from crisscross.models.heads import classifier
from crisscross.models.init import initialise
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
PIXELS_PER_PASS = 32 * 8 * 224 * 224
"""Pixels in one pass of the test: 32 segments of 8 frames, 8 of 32 (chosen by us)."""


class Finetuning(Trainable):
    """A video backbone and a head that learn labels by cross-entropy."""

    num_views = 1

    def __init__(self, backbone: VideoNetwork, head: nn.Module, *, freeze_backbone_epochs: int = 0) -> None:
        """Put the two together.

        Args:
            backbone: (B, 3, T, H, W) -> (B, D).
            head: (B, D) -> (B, K).
            freeze_backbone_epochs: epochs in which the head alone learns.
        """
        super().__init__()
        self.video_backbone = backbone
        self.head = head
        self.freeze_backbone_epochs = freeze_backbone_epochs
        self.uses_all_parameters = freeze_backbone_epochs == 0

    def forward(self, views: Views) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the cross-entropy of a batch, and its top-1."""
        frozen = views.epoch < self.freeze_backbone_epochs
        self.video_backbone.train(not frozen)
        with torch.set_grad_enabled(not frozen):
            features = self.video_backbone(views.of("video")[0])
        logits = self.head(features).float()
        hits = logits.detach().argmax(dim=1) == views.labels
        return F.cross_entropy(logits, views.labels), {"train/top1": hits.float().mean()}


def build_network(settings: DownstreamSettings, backbone: VideoNetwork, *, num_classes: int) -> Finetuning:
    """Return the network before its first step: a backbone as it is and a head drawn from the seed."""
    chosen = settings.finetuning.head
    backbone.pool = chosen.pool
    head = classifier(
        backbone.feature_dim,
        num_classes,
        hidden_dim=chosen.hidden_dim,
        batch_norm=chosen.batch_norm,
        dropout=chosen.dropout,
    )
    initialise(head, seed_key=derive_key(settings.seed, "head"))
    return Finetuning(backbone, head, freeze_backbone_epochs=settings.finetuning.freeze_backbone_epochs)


def finetune(run: RunDirectory) -> bool:
    """Fine-tune and test from wherever the run directory stands.

    Args:
        run: the experiment's run directory.

    Returns:
        True when ``result.json`` is written (on rank 0), False when the job was asked to leave.

    Raises:
        ValueError: when a setting, a weights file or the split is unfit, in one line.
        DecodeError: when a clip cannot be read any more, naming it.
        NonFiniteLossError: when the loss is not finite, naming the step and the clips.
        CheckpointError: when a checkpoint could not be written.
    """
    settings = parse(DownstreamSettings, run.config)
    torch.set_num_threads(settings.execution.num_threads)
    with join_world(settings.execution.device) as world:
        manifest = open_clips(run, settings.data, world, splits=settings.data.splits)
        (fold,) = folds_of(manifest, settings.data)
        require_streams(fold, "v", asked_by="fine-tuning", remedy="")
        task = _task(run, settings, Clips(fold.train, manifest.root), num_classes=len(manifest.classes))
        trainer = Trainer(run, task, world)
        if not trainer.run_to_end():
            return False
        if not world.is_main_process:  # the test is the main process's alone
            return True
        trained = trainer.summary()
    network = trainer.network
    _export(network, run.path / CLASSIFIER_FILE)
    try:
        scores = dense_scores(run, settings, network, Clips(fold.test, manifest.root))
    except Preempted as signal_name:
        logger.info("%s: stopped in the test; the training and the scores so far are kept", signal_name)
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
    """Write the fine-tuned weights: a plain state dict, ``video_backbone.*`` and ``head.*``."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(path, lambda file: torch.save(state, file))


def dense_scores(run: RunDirectory, settings: DownstreamSettings, network: Finetuning, clips: Clips) -> np.ndarray:
    """Look at evenly spaced segments of every test clip and average the probabilities.

    Args:
        run: where logits are kept, so that nothing is computed twice.
        settings: how many segments (``views.evaluation_clips``), how they are cropped.
        network: fine-tuned.
        clips: the test split, N clips.

    Returns:
        (N, K) float64 probabilities.

    Raises:
        Interrupted: when a signal asked the job to leave.
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
    """Map frames (B, 3, T, H, W) to logits (B, K), some segments at a time: at 224 px all would fill a small GPU."""
    at_a_time = max(1, PIXELS_PER_PASS // frames[0, 0].numel())
    return torch.cat([network.head(network.video_backbone(part)) for part in torch.split(frames, at_a_time)])
