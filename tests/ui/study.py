"""The relaxation study as a finished launch leaves it, without any training: real configs, invented numbers."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from crisscross.run.metrics_log import MetricsLog
from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import DEFAULT_EXPERIMENT
from crisscross.tracking.sync import sync_runs
from launch.study.plan import create_runs, make_plan

EXPERIMENT = DEFAULT_EXPERIMENT
RELAXATIONS = ("none", "mild", "medium", "mixed", "extreme")
SEEDS = (0, 1)
NUM_STEPS = 12


class FinishedStudy:
    """Run directories of five relaxations, two seeds each, and their runs in MLflow.

    Attributes:
        runs: the run directories, parents first.
        losses: ``loss/total`` at each step, by the name of the pretraining.
        top1: ``eval/top1_av`` by the name of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        plan = make_plan(
            "relaxation",
            [f"seeds=[{','.join(map(str, SEEDS))}]", f"runs_root={folder / 'runs'}"],
            prepare=lambda data: {**data, "fingerprint": "f" * 16},
        )
        self.runs = list(create_runs(plan, launched=1.0).values())
        self.losses: dict[str, list[float]] = {}
        self.top1: dict[str, float] = {}
        for run in self.runs:
            if run.kind == "pretrain":
                self._pretrain(run)
            else:
                self._evaluate(run)

    def _pretrain(self, run: RunDirectory) -> None:
        level = _number_of(run.label)
        losses = [-(1 - math.exp(-step / 4)) * (0.5 + level) for step in range(1, NUM_STEPS + 1)]
        metrics_log = MetricsLog(run.metrics_path)
        for step, loss in enumerate(losses, start=1):
            pairs = {f"loss/{pair}": loss for pair in ("v1v2", "a1a2", "v1a1")}
            collapse = {"collapse/video_std": 0.06, "collapse/audio_std": 0.05}
            times = {"time/step_s": 0.2, "time/samples_per_s": 60.0 + level}
            metrics_log.write(step, {"loss/total": loss, **pairs, **collapse, **times})
        metrics_log.sync()
        metrics_log.close()
        run.write_result({"steps": NUM_STEPS, "metrics": {}})
        self.losses[run.label] = losses

    def _evaluate(self, run: RunDirectory) -> None:
        top1 = round(0.5 + _number_of(run.label) / 2, 4)
        names = {"v": top1 / 2, "a": top1 - 0.125, "av": top1}
        metrics = {f"eval/top1_{modality}": value for modality, value in names.items()}
        run.write_result({"metrics": {**metrics, "svm/c_av": 0.1}})
        self.top1[run.label] = top1

    def sync(self, uri: str) -> None:
        """Sync all runs to MLflow, as a launch does."""
        assert sync_runs(self.runs, uri, EXPERIMENT).failures == {}


def _number_of(name: str) -> float:
    """Return a number between 0 and 1 that is another for each name."""
    return hashlib.sha256(name.encode()).digest()[0] / 256
