"""A whole study on a real Slurm: submitted at once, equal to the local one, reconciled, cancelled, repaired."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json, write_json
from launch.slurm.assignments import SbatchCall
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import HELD, REPOSITORY, Study, assert_same_results, assert_synced_once, stop

pytestmark = pytest.mark.slow

SHORT = ("relaxation=[none,mild]", "training.epochs=4")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("local"), SHORT).compute_here()


def test_the_study_equals_the_local_one_and_launching_again_adds_nothing(
    tmp_path: Path, idle_slurm: SlurmCluster, local: Study
) -> None:
    study = Study(tmp_path, SHORT, idle_slurm)
    done = study.launch(HELD)
    assert done.returncode == 0, done.stderr
    assert "submitted 5 experiments in 4 sbatch call(s)" in done.stdout
    assert len(idle_slurm.squeue()) == 6  # and the table
    again = study.launch()
    assert "5 experiments are queued or running already" in again.stdout
    assert "submitted 0 experiments in 0 sbatch call(s)" in again.stdout
    assert len(_calls(study)) == 4
    status = study.script("launch/status.py").stdout
    assert "on Slurm: 5 queued; table: job" in status
    study.release()
    study.wait_until_idle()
    assert_same_results(study, local)
    assert study.table() == local.table()
    assert_synced_once(study)
    last = study.launch()  # from the login node: nothing to submit, the table is printed
    assert last.returncode == 0
    assert "5 done already" in last.stdout
    assert "| untrained (floor) |" in last.stdout


def _calls(study: Study) -> list[SbatchCall]:
    return [SbatchCall(path.parent) for path in (study.folder / "runs" / "slurm").glob("*/batch.json")]


def test_two_launches_at_the_same_moment(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false"), idle_slurm)
    study.launch("dry_run=true")  # makes the clips
    launches = [
        subprocess.Popen(
            [sys.executable, str(REPOSITORY / "launch/sweep_relaxation.py"), *study.command()],
            cwd=study.folder,
            env=idle_slurm.full_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = [launch.communicate(timeout=600)[0] for launch in launches]
    assert sorted(text.count("submitted 2 experiments in 3 sbatch call(s)") for text in printed) == [0, 0, 1]
    assert sum(text.count("submitted 0 experiments in 0 sbatch call(s)") for text in printed) == 2
    study.wait_until_idle()
    for run in study.runs().values():
        assert len(read_json(run.path / "launches.json")) == 1
    assert_synced_once(study)


def test_a_crash_between_sbatch_and_bookkeeping_is_healed(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false"), idle_slurm)
    study.launch(HELD)
    calls = {read_json(call.folder / "batch.json")["kind"]: call for call in _calls(study)}
    known = calls["pretrain"].job_id
    for call in calls.values():
        (call.folder / "job.json").unlink()  # as if the launcher had died after sbatch
    again = study.launch()
    assert "2 experiments are queued or running already" in again.stdout
    assert "submitted 0 experiments in 0 sbatch call(s)" in again.stdout
    assert calls["pretrain"].job_id == known
    idle_slurm.cancel_everything()
    # As if it had died before sbatch: experiments without jobs are assigned to new ones.
    for call in calls.values():
        (call.folder / "job.json").unlink()
        write_json(call.folder / "batch.json", {**call.about, "created": 0})
    third = study.launch(HELD)
    assert "submitted 2 experiments in 3 sbatch call(s)" in third.stdout
    idle_slurm.cancel_everything()


def test_scancel_of_one_pretraining(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none,mild]", "study.floor=false", "training.epochs=40"), idle_slurm)
    study.launch()
    run = study.run("pretrain/crisscross-none")
    study.wait_until_at_step(run, 10)
    stop(run)
    idle_slurm.run("scancel", study.jobs_of(run))
    study.wait_until_idle()
    rows = _states(study)
    assert rows["crisscross-none-demo-s0"].startswith("cancelled at ")
    assert rows["crisscross-none-demo-s0-svm-demo"].startswith("parent cancelled needs crisscross-none-demo-s0")
    assert rows["crisscross-mild-demo-s0"].startswith("done")
    assert rows["crisscross-mild-demo-s0-svm-demo"].startswith("done")
    assert "parent cancelled" in study.table()
    repaired = study.launch()
    assert "submitted 2 experiments in 3 sbatch call(s)" in repaired.stdout
    study.wait_until_idle()
    assert set(_states(study).values()) == {"done"}
    assert_synced_once(study)
    assert len(read_json(run.path / "launches.json")) == 2
    assert run.result["steps"] == 120


def _states(study: Study) -> dict[str, str]:
    """Return the state and progress of each experiment that status prints."""
    lines = study.script("launch/status.py").stdout.splitlines()
    head = next(line for line in lines if line.startswith("experiment "))
    begin, end = head.index("state"), head.index("restarts")
    is_row = (line.startswith(("crisscross-", "untrained-")) and "its log ends" not in line for line in lines)
    rows = [line for line, wanted in zip(lines, is_row, strict=True) if wanted]
    return {line.split()[0]: " ".join(line[begin:end].split()) for line in rows}


def test_cancel_an_experiment_then_the_study(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none,mild]", "study.floor=false"), idle_slurm)
    study.launch(HELD)
    done = study.script("launch/cancel.py", "crisscross-none-demo-s0")
    assert done.returncode == 0, done.stderr
    assert "crisscross-none-demo-s0: cancelled job " in done.stdout
    assert "crisscross-none-demo-s0-svm-demo: cancelled job " in done.stdout
    assert "mild" not in done.stdout
    assert _states(study)["crisscross-none-demo-s0"] == "cancelled"
    assert _states(study)["crisscross-mild-demo-s0"].startswith("queued held: scontrol release lets it go")
    done = study.script("launch/cancel.py", "relaxation")
    assert "the table: cancelled job " in done.stdout
    study.wait_until_idle()
    assert set(_states(study).values()) == {"cancelled"}
    assert study.script("launch/cancel.py").stdout == "nothing runs in runs\n"


def test_a_failed_pretraining_takes_its_evaluation_along(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none,mild]", "study.floor=false"), idle_slurm)
    study.launch(HELD)
    run = study.run("pretrain/crisscross-none")
    (run.path / "checkpoints").write_text("no folder")  # whatever goes wrong in a job
    study.release()
    study.wait_until_idle()
    rows = _states(study)
    assert rows["crisscross-none-demo-s0"].startswith("failed")
    assert "File exists" in rows["crisscross-none-demo-s0"]
    assert rows["crisscross-none-demo-s0-svm-demo"].startswith("parent failed")
    assert rows["crisscross-mild-demo-s0-svm-demo"] == "done"
    assert "parent failed" in study.table()


def test_a_local_launch_leaves_what_slurm_has_alone(tmp_path: Path, idle_slurm: SlurmCluster) -> None:
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false"), idle_slurm)
    study.launch(HELD)
    here = Study(tmp_path, study.overrides).launch()
    assert here.returncode == 1
    assert "crisscross-none-demo-s0 has been given to Slurm (job " in here.stderr
    study.script("launch/cancel.py", "relaxation")


def test_jobs_run_the_code_of_their_submission(
    tmp_path: Path, idle_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    code = clone / "crisscross" / "run_experiment.py"
    code.write_text(code.read_text() + "\nUNCOMMITTED = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(clone))
    study = Study(tmp_path / "study", ("relaxation=[none]", "study.floor=false"), idle_slurm, cold=True)
    launch = str(clone / "launch" / "sweep_relaxation.py")
    done = study.script(launch, *study.command(HELD))
    assert done.returncode == 0, done.stderr
    code.write_text("raise RuntimeError('the working tree has moved on')\n")
    monkeypatch.delenv("PYTHONPATH")
    study.release()
    study.wait_until_idle()
    run = study.run("pretrain/crisscross-none")
    assert run.result is not None
    assert "+UNCOMMITTED = 1" in (run.path / "code.diff").read_text()
    ran_on = read_json(run.path / "environment.json")["git"]
    assert ran_on["dirty"]
    assert (study.folder / "runs" / "code" / ran_on["snapshot"] / "crisscross" / "run_experiment.py").is_file()
    (artifact,) = (study.folder / "mlruns").glob(f"*/{_mlflow_id(run)}/artifacts/code.diff")
    assert "+UNCOMMITTED = 1" in artifact.read_text()


def _mlflow_id(run: RunDirectory) -> str:
    (store,) = read_json(run.path / "tracking.json")["stores"].values()
    return store["run_id"]


def test_a_cluster_without_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SlurmCluster(node_names=("n1",)) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        study = Study(tmp_path, ("relaxation=[none,mild]", "study.floor=false"), cluster)
        study.launch(HELD)
        cancelled = study.run("pretrain/crisscross-none")
        cluster.must("scancel", study.jobs_of(cancelled))
        kept = study.run("pretrain/crisscross-mild")
        study.release()
        study.wait_until_idle()
        rows = _states(study)
        assert rows["crisscross-none-demo-s0"].startswith("cancelled")
        assert rows["crisscross-none-demo-s0-svm-demo"].startswith("parent cancelled")
        assert kept.result is not None
