"""Results of an evaluation: metrics, predictions and neighbors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from crisscross.evaluation.folds import Fold
from crisscross.evaluation.retrieval import Neighbors
from crisscross.evaluation.scores import top_k
from crisscross.run.metrics_log import MetricsLog
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_text

logger = logging.getLogger(__name__)


class Results:
    """The results of an evaluation, collected over folds and modalities.

    Metrics have names such as ``eval/top1_v``, those of one fold ``eval/top1_v_fold2``. With folds, a metric without a
    fold in its name is the mean over the folds; for ``svm/c``, whose grid is logarithmic, it is the geometric mean.
    """

    def __init__(self, classes: list[str], *, num_folds: int) -> None:
        self._classes, self._num_folds = classes, num_folds
        self._found: dict[str, dict[str, float]] = {}
        self._predictions: dict[str, pd.DataFrame] = {}
        self._neighbors: list[pd.DataFrame] = []
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
        """Add the scores of a fold's test clips.

        Args:
            fold: the fold.
            modality: ``v``, ``a`` or ``av``.
            scores: (N, K); larger is more likely.
            more: further metrics by name.
            columns: further columns of predictions.csv, (N,) each.
        """
        labels = fold.test["label_id"].to_numpy()
        trained_on = np.isin(np.arange(scores.shape[1]), fold.train["label_id"])
        scores = np.where(trained_on, scores, -np.inf)  # a class without training clips is never predicted
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

    def add_neighbors(
        self, fold: Fold, modality: str, found: Neighbors, recalls: Mapping[int, float], *, num_kept: int
    ) -> None:
        """Add the neighbors of a fold's test clips.

        Args:
            fold: the fold.
            modality: ``v``, ``a`` or ``av``.
            found: the neighbors.
            recalls: recall by rank.
            num_kept: neighbors per query in neighbours.csv.
        """
        self._add(fold, modality, {f"eval/recall_at_{rank}": value for rank, value in recalls.items()})
        shown = ", ".join(f"R@{rank} {100 * value:.1f} %" for rank, value in recalls.items())
        logger.info("%s%s: %s", modality, _where(fold), shown)
        kept = found.indices[:, :num_kept]
        queries = np.repeat(np.arange(len(kept)), kept.shape[1])
        near = fold.train.iloc[kept.reshape(-1)]
        self._neighbors.append(
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
        """All metrics: means over the folds, then those per fold."""
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
        """Return the content of ``result.json`` without files: metrics and numbers of clips."""
        train, test = zip(*self._sizes.values(), strict=True)
        return {
            "metrics": self.metrics,
            "num_train_clips": train[0] if self._num_folds == 1 else list(train),
            "num_test_clips": test[0] if self._num_folds == 1 else list(test),
            "num_classes": len(self._classes),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables to write, by file name."""
        tables = {}
        predictions = [table for table in self._predictions.values() if table.shape[1] > 2]
        if predictions:
            folded = [table.assign(fold=fold) if fold else table for fold, table in self._predictions.items()]
            tables["predictions.csv"] = pd.concat(folded, ignore_index=True)
        if self._neighbors:
            neighbors = pd.concat(self._neighbors, ignore_index=True)
            tables["neighbours.csv"] = neighbors if any(self._found) else neighbors.drop(columns="fold")
        return tables

    def _add(self, fold: Fold, modality: str, found: Mapping[str, float]) -> None:
        self._found.setdefault(fold.name, {}).update({f"{name}_{modality}": value for name, value in found.items()})
        self._sizes[fold.name] = (len(fold.train), len(fold.test))

    def _table(self, fold: Fold) -> pd.DataFrame:
        if fold.name not in self._predictions:
            self._predictions[fold.name] = fold.test[["path", "label"]].reset_index(drop=True)
        return self._predictions[fold.name]


def write_results(run: RunDirectory, results: Results, *, trained: Mapping[str, Any] | None = None) -> None:
    """Write the tables, the metrics of a training and, last, ``result.json``.

    Args:
        run: the run directory.
        results: the results; metrics of frozen features have step 0 and are only in ``result.json``.
        trained: the summary of a training before the evaluation (``Trainer.summary``), for ``result.json``. The
            results are then also logged one step after its last, in place of those of an earlier, killed start.
    """
    tables = results.tables()
    for name, table in tables.items():
        write_text(run.path / name, table.to_csv(index=False))
    trained = dict(trained or {})
    if trained:
        durable = read_json(run.path / "durable.json") or {"metrics_bytes": 0}
        metrics_log = MetricsLog(run.metrics_path, resume_at=durable["metrics_bytes"])
        metrics_log.write(trained["steps"] + 1, results.metrics)
        metrics_log.sync()
        metrics_log.close()
    about = results.about()
    metrics = {**trained.get("metrics", {}), **about["metrics"]}
    run.write_result({**trained, **about, "metrics": metrics, "artifacts": [*tables]})


def _mean(name: str, values: list[float]) -> float:
    if name.startswith("svm/c_"):
        return float(np.exp(np.mean(np.log(values)))) if len(set(values)) > 1 else values[0]
    return float(np.mean(values))


def _where(fold: Fold) -> str:
    return f", fold {fold.name}" if fold.name else ""
