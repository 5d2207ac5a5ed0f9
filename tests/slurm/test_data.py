"""Data in real jobs: tasks of an array prepare a dataset together, jobs read clips from their node's own disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from crisscross.config.base import parse
from crisscross.config.data import DataSettings
from crisscross.data.catalog import open_manifest
from crisscross.data.manifest import Manifest, read_manifest
from crisscross.data.prepare.__main__ import main as prepare
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.data.miniatures import data_overrides, make_miniature
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import REPOSITORY, Study
from tests.support import assert_same_state, final_state, history

pytestmark = pytest.mark.slow

NAME = "kinetics_sound"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_miniature(NAME, tmp_path / NAME)


def _asked(root: Path, *more: str, manifests: str = f"{NAME}-manifests") -> list[str]:
    return [NAME, "--root", str(root), "--manifest-root", str(root.parent / manifests), *more]


def _manifest(root: Path, manifests: str = f"{NAME}-manifests") -> Manifest:
    (directory,) = (root.parent / manifests).iterdir()
    return read_manifest(directory)


def _as_array(cluster: SlurmCluster, root: Path) -> list[str]:
    """Run a preparing as the README does, in three tasks; return the last line that each printed."""
    command = [sys.executable, "-m", "crisscross.data.prepare", *_asked(root, "--share", "slurm")]
    job = cluster.submit(" ".join(command), "--array=1-3", "--cpus-per-task=1", f"--chdir={REPOSITORY}")
    outputs = [cluster.home / "log" / f"job-{job}-{task}.out" for task in (1, 2, 3)]
    states = cluster.wait_for_states(job, "COMPLETED", "FAILED", timeout_s=600)
    assert set(states.values()) == {"COMPLETED"}, "".join(path.read_text() for path in outputs)
    return [path.read_text().splitlines()[-1] for path in outputs]


def test_an_array_prepares_a_dataset(root: Path, idle_slurm: SlurmCluster, capsys: pytest.CaptureFixture[str]) -> None:
    last = _as_array(idle_slurm, root)
    assert [line.partition(":")[0] for line in last] == ["share 1 of 3", "share 2 of 3", "share 3 of 3"]
    assert prepare(_asked(root)) == 0
    assert "probed 0 files in " in capsys.readouterr().out  # all was found in the array
    shared = _manifest(root)
    assert prepare(_asked(root, manifests="undivided")) == 0
    alone = _manifest(root, "undivided")
    assert shared.data_hash == alone.data_hash
    pd.testing.assert_frame_equal(shared.clips, alone.clips)
    pd.testing.assert_frame_equal(shared.rejected, alone.rejected)


def test_jobs_read_clips_from_the_disk_that_slurm_gives_them(
    tmp_path: Path, root: Path, idle_slurm: SlurmCluster
) -> None:
    """What a site's prolog does is done by ``cluster.setup`` here: a folder for each job, in $SLURM_TMPDIR."""
    assert prepare(_asked(root)) == 0
    (tmp_path / "shards").mkdir()
    for number, folder in enumerate(path for path in sorted(root.iterdir()) if path.is_dir()):
        command = ["tar", "-C", str(root), "-cf", str(tmp_path / "shards" / f"{number}.tar"), folder.name]
        subprocess.run(command, check=True)
    disk = tmp_path / "disk"
    prolog = f"cluster.setup=['export SLURM_TMPDIR={disk}/$SLURM_JOB_ID','mkdir -p $SLURM_TMPDIR']"
    staging = ("data.stage=auto", f"data.shards={tmp_path}/shards", prolog)
    study = Study(tmp_path, ("relaxation=[none]", "study.floor=false", *data_overrides(NAME, root)), idle_slurm)
    done = study.launch(*staging, "+cluster.additional_parameters.hold=true")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = _manifest(root)
    originals = {root / path: (root / path).read_bytes() for path in manifest.clips["path"]}
    for path, content in originals.items():  # what is read now is not read here, nor copied from here
        _overwrite(path, bytes(len(content)))
    for job in {row["array_job_id"] for row in idle_slurm.squeue()}:
        idle_slurm.must("scontrol", "release", job)
    study.wait_until_idle()
    for path, content in originals.items():
        _overwrite(path, content)
    for run, splits in ((study.run("pretrain/"), ["train"]), (study.run("downstream/"), ["train", "val"])):
        assert run.result is not None, study.explain()
        num_clips = sum(len(manifest.split(name)) for name in splits)
        where = f"clips are read from {disk}/"
        (line,) = (text for text in run.log_path.read_text().splitlines() if where in text)
        assert f", where {num_clips} (" in line
        _assert_the_same_without_staging(run, tmp_path)


def _overwrite(path: Path, content: bytes) -> None:
    """Give a file another content of the same size, and keep its time: size and time still match the manifest."""
    found = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _assert_the_same_without_staging(run: RunDirectory, folder: Path) -> None:
    data = {**run.config["data"], "stage": "off"}
    config = {**run.config, "data": data, "runs_root": str(folder / "plain")}
    config["tracking"] = {**config["tracking"], "delivery": "off"}
    assert open_manifest(parse(DataSettings, data)).root.name == NAME
    plain = RunDirectory.create(run.kind, config, parents=run.parents)
    assert run_experiment(plain)
    assert plain.identity == run.identity
    assert history(plain) == history(run)
    if run.kind == "pretrain":
        assert_same_state(final_state(plain), final_state(run))
    else:
        assert plain.result["metrics"] == run.result["metrics"]
