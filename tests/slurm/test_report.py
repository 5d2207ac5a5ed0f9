"""Studies that are launched together on Slurm end in one report, in any order."""

from __future__ import annotations

from pathlib import Path

import pytest

from crisscross.tracking.query import search_runs
from crisscross.tracking.store import open_store
from tests.slurm.cluster import SlurmCluster
from tests.slurm.study import Study

pytestmark = pytest.mark.slow

STUDIES = ("dataset_size", "retrieval")
SCRIPT = f"""
import sys
from launch.main import main

if __name__ == "__main__":
    sys.exit(main(*{STUDIES}))
"""


def test_two_studies_have_one_report_and_launching_again_restores_what_is_missing(
    tmp_path: Path, idle_slurm: SlurmCluster
) -> None:
    script = tmp_path / "both.py"
    script.write_text(SCRIPT)
    study = Study(tmp_path / "here", ("study.floor=false",), idle_slurm)

    def launch() -> str:
        done = study.script(str(script), *study.command())
        assert done.returncode == 0, done.stdout + done.stderr
        study.wait_until_idle()
        return done.stdout

    assert "Figure 5" not in launch()
    page = study.folder / "tables" / "report.html"
    (figure,) = (study.folder / "figures").glob("figure5-*.png")
    for heading in ("Table 2:", "Retrieval:", "Figure 5"):
        assert heading in page.read_text(), study.explain()
    page.unlink()
    figure.unlink()
    place = {"uri": f"sqlite:///{study.folder / 'mlflow.db'}", "experiment": "crisscross"}
    found = search_runs("tags.kind = 'downstream'", **place)
    open_store(**place).client.delete_run(found[0]["run_id"])
    printed = launch()  # everything is done: there is no job that would make them
    assert "Figure 5: figures/" in printed
    assert page.is_file()
    assert figure.is_file()
    assert {run["run_id"] for run in search_runs("tags.kind = 'downstream'", **place)} == {
        run["run_id"] for run in found
    }
