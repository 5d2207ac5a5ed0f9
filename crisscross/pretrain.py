"""Pretraining: train a method and export its backbones."""

from __future__ import annotations

import torch

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.config.method import DatasetInfo
from crisscross.data.decoded_cache import open_cache
from crisscross.data.loader import Clips
from crisscross.data.manifest import Manifest
from crisscross.data.staging import stage_manifest
from crisscross.methods.base import BaseMethod, build_method
from crisscross.models.weights_io import export_backbone
from crisscross.run.run_dir import RunDirectory
from crisscross.training.trainer import Task, Trainer
from crisscross.utils.distributed import join_world


def pretrain(run: RunDirectory) -> bool:
    """Pretrain, resuming from the run directory.

    Args:
        run: the experiment's run directory.

    Returns:
        True if training is done and ``result.json`` is written; False if it was interrupted after a checkpoint.

    Raises:
        ValueError: if a setting is impossible for this data or machine.
        DecodeError: if a clip cannot be decoded any more; the message names it.
        NonFiniteLossError: if the loss is not finite; the message names the step and the clips.
        CheckpointError: if a checkpoint cannot be written.
    """
    settings = parse(PretrainSettings, run.config)
    torch.set_num_threads(settings.execution.num_threads)
    with join_world(settings.execution.device) as world:
        manifest = stage_manifest(run, settings.data, world, splits=[settings.data.train_split])
        trainer = Trainer(run, _task(settings, manifest), world)
        if not trainer.run_to_end():
            return False
        if world.is_main_process:
            files = {}
            for modality in [{"v": "video", "a": "audio"}[letter] for letter in trainer.network.modalities]:
                files[modality] = f"{modality}_backbone.pt"
                export_backbone(trainer.network.backbone(modality), run.path / files[modality])
            run.write_result({**trainer.summary(), "backbones": files})
        world.barrier()
    return True


def _task(settings: PretrainSettings, manifest: Manifest) -> Task[BaseMethod]:
    cache = open_cache(manifest, settings.data, settings.views)
    clips = Clips(manifest.split(settings.data.train_split), manifest.root, cache)
    dataset = DatasetInfo(num_clips=len(clips), num_classes=len(manifest.classes))
    network = build_method(settings.method, settings.model, dataset, seed=settings.seed)
    return Task(
        phase="pretraining",
        network=network,
        clips=clips,
        views=settings.views,
        relaxation=settings.relaxation,
        modalities=network.modalities,
        optim=settings.optim,
        training=settings.training,
        execution=settings.execution,
        tracking=settings.tracking,
        seed=settings.seed,
    )
