"""What an evaluation found: metrics of each fold and their mean, predictions of each clip."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from crisscross.evaluation.folds import Fold
from crisscross.evaluation.retrieval import Neighbours
from crisscross.evaluation.scores import top_k
from crisscross.run.metrics_log import MetricsLog
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_text

logger = logging.getLogger(__name__)


class Results:
    """Collects what is found, fold after fold, modality after modality.

    Metrics are named ``eval/top1_v``; those of a fold ``eval/top1_v_fold2``. Where there are folds, the one without a
    fold is the mean over them: the geometric one of ``svm/c``, whose grid goes by powers of ten.
    """

    def __init__(self, classes: list[str], *, num_folds: int) -> None:
        self._classes, self._num_folds = classes, num_folds
        self._found: dict[str, dict[str, float]] = {}
        self._predictions: dict[str, pd.DataFrame] = {}
        self._neighbours: list[pd.DataFrame] = []
        self._sizes: dict[str, tuple[int, int]] = {}

    def add_scores(
        self,
        fold: Fold,
        modality: str,
        scores: np.ndarray,
        more: Mapping[str, float],
        *,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Note the scores of a fold's test clips, (N, K), further metrics by name, and what else is said of a clip."""
        labels = fold.test["label_id"].to_numpy()
        trained_on = np.isin(np.arange(scores.shape[1]), fold.train["label_id"])
        scores = np.where(trained_on, scores, -np.inf)  # whatever a layer says of a class that it has never seen
        found = {f"eval/top{k}": top_k(scores, labels, k) for k in (1, 5)}
        self._add(fold, modality, {**found, **more})
        predicted = [self._classes[index] for index in scores.argmax(axis=1)]
        self._table(fold)[f"predicted_{modality}"] = predicted
        for name, values in (columns or {}).items():
            self._table(fold)[name] = values
        known = ", ".join(f"{name.partition('/')[2]} {value:g}" for name, value in more.items())
        logger.info(
            "%s%s: top-1 %.1f %%%s", modality, _where(fold), 100 * found["eval/top1"], f" ({known})" if known else ""
        )

    def add_neighbours(
        self, fold: Fold, modality: str, found: Neighbours, recalls: Mapping[int, float], *, num_kept: int
    ) -> None:
        """Note the neighbours of a fold's test clips and the recalls by rank."""
        self._add(fold, modality, {f"eval/recall_at_{rank}": value for rank, value in recalls.items()})
        shown = ", ".join(f"R@{rank} {100 * value:.1f} %" for rank, value in recalls.items())
        logger.info("%s%s: %s", modality, _where(fold), shown)
        kept = found.indices[:, :num_kept]
        queries = np.repeat(np.arange(len(kept)), kept.shape[1])
        near = fold.train.iloc[kept.reshape(-1)]
        self._neighbours.append(
            pd.DataFrame(
                {
                    "fold": fold.name,
                    "modality": modality,
                    "query": fold.test["path"].to_numpy()[queries],
                    "query_label": fold.test["label"].to_numpy()[queries],
                    "rank": np.tile(np.arange(1, kept.shape[1] + 1), len(kept)),
                    "neighbour": near["path"].to_numpy(),
                    "neighbour_label": near["label"].to_numpy(),
                    "distance": found.distances[:, :num_kept].reshape(-1).round(6),
                }
            )
        )
        self._table(fold)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics: means over the folds, then those of each fold where there are any."""
        means: dict[str, list[float]] = {}
        for found in self._found.values():
            for name, value in found.items():
                means.setdefault(name, []).append(value)
        metrics = {name: _mean(name, values) for name, values in means.items()}
        for fold, found in self._found.items():
            if fold:
                metrics |= {f"{name}_fold{fold}": value for name, value in found.items()}
        return metrics

    def about(self) -> dict[str, Any]:
        """Return what ``result.json`` says beside files: metrics, and how many clips trained and tested."""
        train, test = zip(*self._sizes.values(), strict=True)
        return {
            "metrics": self.metrics,
            "num_train_clips": train[0] if self._num_folds == 1 else list(train),
            "num_test_clips": test[0] if self._num_folds == 1 else list(test),
            "num_classes": len(self._classes),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables to be written, by file name."""
        tables = {}
        predictions = [table for table in self._predictions.values() if table.shape[1] > 2]
        if predictions:
            folded = [table.assign(fold=fold) if fold else table for fold, table in self._predictions.items()]
            tables["predictions.csv"] = pd.concat(folded, ignore_index=True)
        if self._neighbours:
            neighbours = pd.concat(self._neighbours, ignore_index=True)
            tables["neighbours.csv"] = neighbours if any(self._found) else neighbours.drop(columns="fold")
        return tables

    def _add(self, fold: Fold, modality: str, found: Mapping[str, float]) -> None:
        self._found.setdefault(fold.name, {}).update({f"{name}_{modality}": value for name, value in found.items()})
        self._sizes[fold.name] = (len(fold.train), len(fold.test))

    def _table(self, fold: Fold) -> pd.DataFrame:
        if fold.name not in self._predictions:
            self._predictions[fold.name] = fold.test[["path", "label"]].reset_index(drop=True)
        return self._predictions[fold.name]


def write_results(run: RunDirectory, results: Results, *, trained: Mapping[str, Any] | None = None) -> None:
    """Write tables, the history of a training and, last, ``result.json``.

    Args:
        run: where they go.
        results: what was found. MLflow draws them as bars: of step 0, which ``result.json`` alone has.
        trained: what ``result.json`` says of a training that came before (``Trainer.summary``); its history then goes
            on behind the last step, where an earlier start may have come as far as this.
    """
    tables = results.tables()
    for name, table in tables.items():
        write_text(run.path / name, table.to_csv(index=False))
    trained = dict(trained or {})
    if trained:
        durable = read_json(run.path / "durable.json") or {"metrics_bytes": 0}
        journal = MetricsLog(run.metrics_path, resume_at=durable["metrics_bytes"])
        journal.write(trained["steps"] + 1, results.metrics)
        journal.sync()
        journal.close()
    about = results.about()
    metrics = {**trained.get("metrics", {}), **about["metrics"]}
    run.write_result({**trained, **about, "metrics": metrics, "artifacts": [*tables]})


def _mean(name: str, values: list[float]) -> float:
    if name.startswith("svm/c_"):
        return float(np.exp(np.mean(np.log(values)))) if len(set(values)) > 1 else values[0]
    return float(np.mean(values))


def _where(fold: Fold) -> str:
    return f", fold {fold.name}" if fold.name else ""
