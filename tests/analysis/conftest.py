from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.sync import sync_runs

STUDY_HASH = "0123abcd"


class Study:
    """Creates run directories of a study and syncs them to MLflow."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "relaxation",
        table: int | str = 3,
        study_hash: str = STUDY_HASH,
        launched: float = 1.0,
        scale: str = "demo",
    ):
        self.folder, self.scale, self.name = folder, scale, f"{name}.{study_hash}"
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.about = {"study": name, "table": table, "fingerprint": study_hash, "launched": launched}
        self.runs: list[RunDirectory] = []

    def _make(self, kind: str, config: dict, parents=(), point: dict | None = None) -> RunDirectory:
        common = {"scale": {"name": self.scale}, "runs_root": str(self.folder / "runs")}
        studies = {self.name: {**self.about, "point": point or {}}}
        run = RunDirectory.create(kind, {**common, **config}, parents=parents, studies=studies)
        self.runs.append(run)
        return run

    def pretraining(
        self,
        relaxation: str,
        *,
        seed: int = 0,
        data: str = "demo",
        method: dict | None = None,
        point: dict | None = None,
        **progress,
    ) -> RunDirectory:
        config = {
            "method": method or {"name": "crisscross"},
            "relaxation": relaxation,
            "seed": seed,
            "data": {"name": data, "fingerprint": "f" * 64},
        }
        run = self._make("pretrain", config, point=point)
        if progress:
            _write_progress(run, progress)
        else:
            run.write_result({"steps": 1, "metrics": {"loss/total": -0.5}})
        return run

    def evaluation(
        self,
        parent: RunDirectory | None,
        top1: dict[str, float] | None = None,
        *,
        seed: int = 0,
        data: str = "demo",
        num_clips: int = 10,
        protocol: dict | None = None,
        folds: tuple[int, ...] = (),
        model: dict | None = None,
        epoch: int | None = None,
        **progress,
    ) -> RunDirectory:
        svm = {"name": "svm", "modalities": ["v", "a", "av"], "num_clips": num_clips}
        config = {
            "downstream": protocol or svm,
            "weights": {"run": parent and str(parent.path), "epoch": epoch, "video": None, "audio": None},
            "seed": seed,
            "data": {"name": data, "fingerprint": "e" * 64, **({"folds": [*folds]} if folds else {})},
            **({"model": model} if model else {}),
        }
        point = parent.about["studies"][self.name]["point"] if parent else None
        run = self._make("downstream", config, parents=[parent] if parent else [], point=point)
        if progress:
            _write_progress(run, progress)
        if top1:
            names = {name: name if "recall" in name else f"top1_{name}" for name in top1}
            run.write_result({"metrics": {f"eval/{names[name]}": value for name, value in top1.items()}})
        return run

    def sync(self) -> None:
        assert sync_runs(self.runs, self.uri, "crisscross").failures == {}


def _write_progress(run: RunDirectory, progress: dict) -> None:
    """Write progress.json with a future time, so that the run counts as running on a slow machine too."""
    run.write_progress(**progress)
    path = run.path / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time.time() + 3600}))


@pytest.fixture
def study(empty_store, tmp_path) -> Study:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Study(tmp_path)
