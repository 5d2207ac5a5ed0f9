"""The tracking server is away for minutes in the middle of a run: training goes on, no step is lost or told twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crisscross.run_directory import RunDirectory
from crisscross.tracking import TrackingError, search_runs
from tests.mlflow_server import Server
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import Study
from tests.support import full_history

pytestmark = pytest.mark.slow

OUTAGE_S = 120.0
ONE = ("relaxation=[none]", "study.floor=false", "study.downstream=[]", "execution.checkpoint_minutes=0.05")


def test_the_server_is_away_for_minutes(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    # more epochs than any machine does in the time: it is cancelled in the end
    study = Study(tmp_path, (*ONE, "training.epochs=5000", f"tracking.uri={server.uri}"), idle_slurm)
    try:
        assert study.launch().returncode == 0
        run = study.run("pretrain/crisscross-none")
        study.wait_until(lambda: len(_told(run, server)) > 0, what="first steps in MLflow")
        before = _told(run, server)
        server.stop()
        _trains_on(run, seconds=OUTAGE_S)
        server.start(workers=2)
        back_at = run.progress["step"]
        study.wait_until(lambda: max(_told(run, server)) > back_at, what="MLflow knows the outage's steps")
        told = _told(run, server)
        assert told == {step: metrics["loss/total"] for step, metrics in full_history(run) if step <= max(told)}
        assert max(before) < back_at
        print(f"known before: {max(before)} steps; done when the server came back: {back_at}; now known: {max(told)}")
    finally:
        study.script("launch/cancel.py")
        study.wait_until_idle()
        server.stop()


def _trains_on(run: RunDirectory, *, seconds: float) -> None:
    began, step = time.monotonic(), run.progress["step"]
    while (away := time.monotonic() - began) < seconds:
        time.sleep(5)
        assert run.progress["state"] == "running"
        assert run.progress["step"] > step, f"training stood still {away:.0f} s into the outage"
        step = run.progress["step"]


def _told(run: RunDirectory, server: Server) -> dict[int, float]:
    """Return what the server knows of the loss, by step; no step may stand twice."""
    try:
        known = search_runs("", uri=server.uri, experiment="crisscross")
    except TrackingError:  # not even an experiment yet
        known = []
    if not known:
        return {}
    (found,) = known
    points = MlflowClient(tracking_uri=server.uri).get_metric_history(found["run_id"], "loss/total")
    assert len({point.step for point in points}) == len(points)
    assert found["tags"]["crisscross.identity"] == run.identity
    return {point.step: point.value for point in points}
