"""The one evaluator: frozen backbones -> features of both splits -> a protocol -> ``result.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from crisscross.data.catalogue import open_manifest
from crisscross.data.loader import Clips
from crisscross.data.manifest import Manifest
from crisscross.data.staging import staged
from crisscross.evaluation.features import Features, Parts, cached_features, extract_features
from crisscross.evaluation.finetune import finetune
from crisscross.evaluation.memo import Memo
from crisscross.evaluation.svm import evaluate_svm, top_k
from crisscross.evaluation.weights import backbones_of
from crisscross.files import write_text
from crisscross.journal import Journal
from crisscross.models.backbones import Backbones
from crisscross.randomness import derive_key
from crisscross.run_directory import RunDirectory
from crisscross.settings import DownstreamSettings
from crisscross.settings_base import parse
from crisscross.training.distributed import choose_device
from crisscross.training.interruption import INTERRUPTION, Interrupted

logger = logging.getLogger(__name__)


def evaluate(run: RunDirectory) -> bool:
    """Evaluate frozen backbones from wherever the run directory stands; features already extracted are kept.

    Args:
        run: the experiment's run directory.

    Returns:
        True when ``result.json`` is written, False when the job was asked to leave.

    Raises:
        ValueError: when a setting, a weights file or the split is unfit, in one line.
        DecodeError: when a clip cannot be read any more, naming it.
    """
    settings = parse(DownstreamSettings, run.config)
    if settings.downstream.name == "finetune":
        return finetune(run)
    torch.set_num_threads(settings.execution.num_threads)
    manifest = staged(open_manifest(settings.data), settings.data, splits=settings.data.splits, report=run.say_phase)
    device = choose_device(settings.execution.device)
    backbones = backbones_of(run, settings).to(device)
    try:
        train, test = (
            _features(run, settings, manifest, backbones, split=split, device=device)
            for split in (settings.data.train_split, settings.data.test_split)
        )
        _run_svm(run, settings, manifest, train, test)
    except Interrupted as signal_name:
        logger.info("%s: stopped; features and accuracies so far are kept", signal_name)
        return False
    return True


def _features(
    run: RunDirectory,
    settings: DownstreamSettings,
    manifest: Manifest,
    backbones: Backbones,
    *,
    split: str,
    device: torch.device,
) -> Features:
    if INTERRUPTION.requested:
        raise Interrupted(INTERRUPTION.signal_name)
    clips = Clips(manifest.split(split), manifest.root)

    def report(done: int, rate: float) -> None:
        run.write_progress(
            state="running",
            phase=f"features of {split}",
            step=done,
            total=len(clips),
            rate=rate,
            rate_unit="clips/s",
            eta_s=(len(clips) - done) / rate,
        )

    def extract(parts: Parts) -> Features:
        return extract_features(
            backbones, clips, settings.views, execution=settings.execution, device=device, report=report, parts=parts
        )

    return cached_features(run.path / "features" / f"{split}.npz", extract)


def _run_svm(
    run: RunDirectory,
    settings: DownstreamSettings,
    manifest: Manifest,
    train: Features,
    test: Features,
) -> None:
    """Fit one SVM a modality, write metrics, predictions and the result."""
    unseen = sorted({manifest.classes[label] for label in np.setdiff1d(test.labels, train.labels)})
    if unseen:
        logger.warning("no training clips of %s: their test clips count as errors", ", ".join(unseen))
    protocol = settings.downstream
    metrics: dict[str, float] = {}
    predictions: dict[str, Any] = {}
    for modality in protocol.modalities:
        if INTERRUPTION.requested:
            raise Interrupted(INTERRUPTION.signal_name)
        run.write_progress(state="running", phase=f"SVM on {modality}")
        found = evaluate_svm(
            train.of(modality),
            train.labels,
            test.of(modality),
            num_classes=len(manifest.classes),
            c_grid=protocol.c_grid,
            num_folds=protocol.num_folds,
            seed=derive_key(settings.seed, "svm") % 2**31,
            memo=Memo(run.path / "features" / f"svm_{modality}.json"),
        )
        for k in (1, 5):
            metrics[f"eval/top{k}_{modality}"] = top_k(found.scores, test.labels, k)
        metrics[f"svm/c_{modality}"] = found.chosen_c
        if found.validation_top1 is not None:
            metrics[f"svm/validation_top1_{modality}"] = found.validation_top1
        predictions[f"predicted_{modality}"] = [manifest.classes[index] for index in found.scores.argmax(axis=1)]
        logger.info("%s: top-1 %.1f %% (C=%g)", modality, 100 * metrics[f"eval/top1_{modality}"], found.chosen_c)
    _write(run, settings, manifest, metrics, predictions, num_train=len(train.labels))


def _write(
    run: RunDirectory,
    settings: DownstreamSettings,
    manifest: Manifest,
    metrics: Mapping[str, float],
    predictions: Mapping[str, Any],
    *,
    num_train: int,
) -> None:
    frame = manifest.split(settings.data.test_split)
    table = pd.DataFrame({"path": frame["path"].to_numpy(), "label": frame["label"].to_numpy(), **predictions})
    write_text(run.path / "predictions.csv", table.to_csv(index=False))
    journal = Journal(run.metrics_path)
    journal.write(1, metrics)
    journal.sync()
    journal.close()
    run.write_result(
        {
            "metrics": dict(metrics),
            "num_train_clips": num_train,
            "num_test_clips": len(frame),
            "num_classes": len(manifest.classes),
            "artifacts": ["predictions.csv"],
        }
    )
