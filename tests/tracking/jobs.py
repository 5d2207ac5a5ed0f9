"""Run directories and journals as jobs leave them, and MLflow's side of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from crisscross.run.metrics_log import MetricsLog
from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import absolute
from crisscross.tracking.query import search_runs
from crisscross.tracking.store import open_store
from crisscross.tracking.sync import sync_run
from crisscross.tracking.sync_state import SyncState
from crisscross.utils.files import read_json, write_json

EXPERIMENT = "crisscross"
WHERE = {"kind": "folder", "root": "clips", "csv": None, "train_split": "train", "test_split": "test"}

STUDY = {
    "relaxation.0123abcd": {
        "study": "relaxation",
        "table": 3,
        "fingerprint": "0123abcd",
        "launched": 12.5,
        "point": {"relaxation": "mild"},
    }
}


def pretraining(runs_root: Path, *, seed: int = 0, **changes) -> RunDirectory:
    config = {
        "scale": {"name": "demo"},
        "method": {"name": "crisscross", "async_weight": 1.0},
        "relaxation": "mild",
        "seed": seed,
        "data": {"name": "demo", "fingerprint": "f" * 64, **WHERE},
        "runs_root": str(runs_root),
        "tracking": {"uri": "https://ada:secret@mlflow.example.org"},
        **changes,
    }
    return RunDirectory.create("pretrain", config, studies=STUDY)


def evaluation(parent: RunDirectory) -> RunDirectory:
    config = {
        "scale": {"name": "demo"},
        "downstream": {"name": "svm", "modalities": ["v", "a", "av"]},
        "weights": {"run": str(parent.path), "video": None, "audio": None},
        "seed": 7,
        "data": {"name": "clips", "fingerprint": "e" * 64, **WHERE},
        "runs_root": str(parent.path.parents[1]),
    }
    return RunDirectory.create("downstream", config, parents=[parent], studies=STUDY)


class Job:
    """Writes a metrics log as training does: steps, checkpoints, and what a kill leaves behind."""

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.metrics_log, self.step = run, None, 0
        self.resume()

    def resume(self, at: dict | None = None) -> None:
        if self.metrics_log is not None:
            self.metrics_log.close()
        durable = at or read_json(self.run.path / "durable.json") or {"step": 0, "metrics_bytes": 0}
        self.metrics_log = MetricsLog(self.run.metrics_path, resume_at=durable["metrics_bytes"])
        self.step = durable["step"]

    def train(self, steps: int, *, names: int = 3) -> None:
        for _ in range(steps):
            self.step += 1
            # Fractions that have no short decimal form: they must arrive as they are.
            self.metrics_log.write(self.step, {f"loss/{k}": (self.step + k) / 7 for k in range(names)})
            time.sleep(0.001)

    def checkpoint(self) -> dict:
        durable = {"step": self.step, "metrics_bytes": self.metrics_log.sync()}
        write_json(self.run.path / "durable.json", durable)
        return durable

    def finish(self, **result) -> None:
        self.checkpoint()
        self.metrics_log.close()
        self.run.write_result({"steps": self.step, "metrics": {}, **result})


class Sync(NamedTuple):
    """What one sync of a run did."""

    run_id: str
    points_sent: int
    finished: bool


def send(run: RunDirectory, uri: str) -> Sync:
    store = open_store(uri, EXPERIMENT)
    with store.exclusively():
        points_sent = sync_run(run, store)
    sent = SyncState(run, store.key).sent
    return Sync(sent.run_id, points_sent, bool(sent.finished_as))


def client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=absolute(uri))


def assert_history_once(run: RunDirectory, uri: str, *, lines: int | None = None) -> None:
    """Compare MLflow's history with the metrics log, point by point: all of it, each point once."""
    text = run.metrics_path.read_text().splitlines()[:lines]
    wanted = Counter()
    for line in map(json.loads, text):
        wanted.update((name, line["step"], value) for name, value in line["metrics"].items())
    (only,) = all_runs(uri, run)
    found = Counter()
    for name in only["metrics"]:
        history = client(uri).get_metric_history(only["run_id"], name)
        found.update((point.key, point.step, point.value) for point in history)
    assert found == wanted


def all_runs(uri: str, run: RunDirectory) -> list[dict]:
    return search_runs(f"tags.`crisscross.identity` = '{run.identity}'", uri=uri, experiment=EXPERIMENT)
