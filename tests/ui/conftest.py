"""One study, one MLflow server and one browser for all tests of the UI."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crisscross.tracking.query import experiment_id_of, search_runs
from tests.mlflow_server import Server
from tests.requirements import missing
from tests.ui.browser import Browser, missing_program
from tests.ui.study import EXPERIMENT, FinishedStudy


class Site:
    """A finished study on a server, and a browser to look at it."""

    def __init__(self, study: FinishedStudy, browser: Browser, *, folder: Path) -> None:
        self.study, self.browser = study, browser
        store = {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": EXPERIMENT}
        self.experiment_id = experiment_id_of(**store)
        self.run_ids = {run["tags"]["mlflow.runName"]: run["run_id"] for run in search_runs("", **store)}

    def open_run(self, name: str, tab: str = "") -> None:
        self.browser.open(f"#/experiments/{self.experiment_id}/runs/{self.run_ids[name]}{tab}")


@pytest.fixture(scope="session")
def site(empty_store, tmp_path_factory) -> Iterator[Site]:
    if absent := missing_program():
        missing(absent)
    folder = tmp_path_factory.mktemp("ui")
    shutil.copy(empty_store, folder / "mlflow.db")
    study = FinishedStudy(folder)
    study.sync(f"sqlite:///{folder}/mlflow.db")
    server = Server(folder)
    server.start()
    try:
        browser = Browser(server.uri)
        try:
            yield Site(study, browser, folder=folder)
        finally:
            browser.close()
    finally:
        server.stop()
