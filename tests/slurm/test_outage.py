"""The tracking server is down in the middle of a run: training continues, no step is lost or logged twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import search_runs
from crisscross.utils.files import read_json
from tests.mlflow_server import Server
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import Study, stop
from tests.support import full_history

pytestmark = pytest.mark.slow

OUTAGE_S = 45.0  # MLflow's own client gives up on a server, or holds training up, for 30 s
PAUSE_S = 3.0  # a few steps now and then are enough to see that training continues
ONE = ("relaxation=[none]", "study.floor=false", "study.downstream=[]", "execution.checkpoint_minutes=0.05")


def test_the_server_is_away_for_longer_than_a_client_waits(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    # more epochs than any machine does in the time: it is cancelled in the end
    study = Study(tmp_path, (*ONE, "training.epochs=5000", f"tracking.uri={server.uri}"), idle_slurm)
    try:
        assert study.launch().returncode == 0
        run = study.run("pretrain/crisscross-none")
        _stop_when_durable_beyond(study, run, 0)
        study.wait_until(lambda: len(_logged(run, server)) > 0, what="first steps in MLflow")
        before = _logged(run, server)
        server.stop()
        _trains_on(study, run, seconds=OUTAGE_S)
        server.start(workers=2)
        back_at = run.progress["step"]
        _stop_when_durable_beyond(study, run, back_at)
        study.wait_until(lambda: max(_logged(run, server)) > back_at, what="MLflow has the outage's steps")
        logged = _logged(run, server)
        assert logged == {step: metrics["loss/total"] for step, metrics in full_history(run) if step <= max(logged)}
        assert max(before) < back_at
        print(
            f"logged before: {max(before)} steps; done when the server came back: {back_at}; now logged: {max(logged)}"
        )
    finally:
        study.script("launch/cancel.py")  # scancel continues a stopped process
        study.wait_until_idle()
        server.stop()


def _trains_on(study: Study, run: RunDirectory, *, seconds: float) -> None:
    """Continue a stopped run for a moment again and again: it must make progress each time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        step = run.progress["step"]
        stop(run).resume()
        study.wait_until(lambda before=step: run.progress["step"] > before, what=f"a step after {step}")
        assert run.progress["state"] == "running"
        stop(run)
        time.sleep(PAUSE_S)


def _stop_when_durable_beyond(study: Study, run: RunDirectory, step: int) -> None:
    """Continue a run until a checkpoint covers more steps than these, which MLflow then lacks."""
    if step:
        stop(run).resume()
    study.wait_until(
        lambda: (read_json(run.path / "durable.json") or {}).get("history_step", 0) > step, what="a checkpoint"
    )
    stop(run)


def _logged(run: RunDirectory, server: Server) -> dict[int, float]:
    """Return the loss on the server, by step; no step may occur twice."""
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
