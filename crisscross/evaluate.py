"""Evaluate frozen backbones: extract features, run a protocol per fold, write ``result.json``."""

from __future__ import annotations

import logging

import torch
from threadpoolctl import threadpool_limits

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.manifest import Manifest
from crisscross.data.staging import stage_in
from crisscross.evaluation.backbones import backbones_of
from crisscross.evaluation.cache import JsonCache
from crisscross.evaluation.feature_layers import feature_extractors
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.fold_features import FoldFeatures
from crisscross.evaluation.folds import Fold, folds_of, require_streams
from crisscross.evaluation.linear_probe import evaluate_linear
from crisscross.evaluation.results import Results, write_results
from crisscross.evaluation.retrieval import recall_at, retrieve
from crisscross.evaluation.svm import evaluate_svm
from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from crisscross.utils.distributed import choose_device
from crisscross.utils.rng import derive_key
from crisscross.utils.signals import Preempted, raise_if_preempted

logger = logging.getLogger(__name__)


def evaluate(run: RunDirectory) -> bool:
    """Run or resume an evaluation on frozen features.

    Args:
        run: the experiment's run directory; features that it has are reused.

    Returns:
        True if ``result.json`` is written, False if a signal stopped the job.

    Raises:
        ValueError: if a setting, a weights file or a split does not suit the protocol.
        DecodeError: if a clip can no longer be decoded.
    """
    settings = parse(DownstreamSettings, run.config)
    torch.set_num_threads(settings.execution.num_threads)
    try:
        with threadpool_limits(settings.execution.num_threads):  # by default NumPy uses all cores, also of other jobs
            _Evaluation(run, settings).run()
    except Preempted as signal_name:
        logger.info("%s: stopped; features and results so far are kept", signal_name)
        return False
    return True


class _Evaluation:
    """One evaluation of frozen features."""

    def __init__(self, run: RunDirectory, settings: DownstreamSettings) -> None:
        self._run, self._settings, self._protocol = run, settings, settings.frozen
        self._device = choose_device(settings.execution.device)
        self._manifest: Manifest = stage_in(
            open_manifest(settings.data), settings.data, splits=settings.data.splits, report=run.record_phase
        )
        # The seed of every protocol's draws. The purpose "svm" serves all of them: another one changes results.
        self._seed = derive_key(settings.seed, "svm") % 2**31

    def run(self) -> None:
        """Extract features, evaluate each fold and modality, write the results."""
        folds = folds_of(self._manifest, self._settings.data)
        for fold in folds:
            require_streams(fold, self._protocol.streams)
        backbones = backbones_of(self._run, self._settings).to(self._device).eval()
        features = FoldFeatures(
            self._run,
            self._settings,
            self._manifest,
            folds,
            feature_extractors(backbones, self._protocol),
            self._device,
        )
        results = Results(self._manifest.classes, num_folds=len(folds))
        for fold in folds:
            for modality in self._protocol.modalities:
                raise_if_preempted()
                where = f" of fold {fold.name}" if fold.name else ""
                self._run.write_progress(state=RunState.RUNNING, phase=f"{self._protocol.name} on {modality}{where}")
                self._evaluate(fold, modality, *features.of(fold, modality), results)
        write_results(self._run, results)

    def _evaluate(self, fold: Fold, modality: str, train: FeatureMatrix, test: FeatureMatrix, results: Results) -> None:
        """Run the protocol on one fold and modality."""
        if self._protocol.name == "retrieval":
            found = retrieve(test, train, settings=self._protocol)
            recalls = recall_at(found, test.labels, train.labels, self._protocol.ranks)
            results.add_neighbors(fold, modality, found, recalls, num_kept=self._protocol.num_neighbours)
            return
        metrics, name = {}, f"{fold.name or 'only'}_{modality}"
        if self._protocol.name == "svm":
            svm = evaluate_svm(
                train,
                test,
                num_classes=len(self._manifest.classes),
                settings=self._protocol,
                seed=self._seed,
                groups=fold.groups,
                sources=fold.sources,
                class_names=self._manifest.classes,
                device=self._device,
                cache=JsonCache(self._run.path / "features" / f"svm_{name}.json"),
            )
            scores, metrics["svm/c"] = svm.scores, svm.chosen_c
            if svm.validation_top1 is not None:
                metrics["svm/validation_top1"] = svm.validation_top1
        else:
            scores = evaluate_linear(
                train,
                test,
                num_classes=len(self._manifest.classes),
                settings=self._protocol,
                seed=self._seed,
                device=self._device,
                state_path=self._run.path / "features" / f"linear_{name}.pt",
                keep_minutes=self._settings.execution.checkpoint_minutes,
            )
        results.add_scores(fold, modality, scores, metrics)
