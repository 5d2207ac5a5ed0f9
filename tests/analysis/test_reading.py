"""Tables are read from a database without MLflow, with the same result as through MLflow's client."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.make_tables import print_all
from analysis.runs import COLUMNS_OF_TAGS, METRICS, PARAMS, tidy
from crisscross.tracking import query
from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import RunColumns, experiment_tags, search_runs, study_runs
from crisscross.utils.files import file_lock
from tests.large_store import EXPERIMENT, Template, multiply, sync_template
from tests.tracking.jobs import client

STUDY = "retrieval"
SEEDS = 25
"""Seeds of the printed variant; a seed has three runs."""
OLD_SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
CREATE TABLE experiment_tags (experiment_id INTEGER, key TEXT, value TEXT);
INSERT INTO experiments VALUES (3, 'crisscross'), (4, 'other');
INSERT INTO experiment_tags VALUES (3, 'study.relaxation.latest', '0123abcd'), (4, 'of', 'another');
"""


class Made(Template):
    """A store that tests read."""

    @property
    def name(self) -> str:
        """Name of the printed variant."""
        return f"{STUDY}.{self.fingerprints[STUDY]}"


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A few hundred runs of several variants of a study, some with unusual values."""
    folder = tmp_path_factory.mktemp("reading")
    shutil.copy(empty_store, folder / "mlflow.db")
    template = sync_template(folder, [STUDY])
    file = folder / "many" / "mlflow.db"
    file.parent.mkdir()
    multiply(template, file, num_runs=220, seeds_per_variant=SEEDS)
    made = Made(file, template.fingerprints)
    mlflow, tag = client(made.uri), f"study.{made.name}"
    runs = search_runs(f"tags.`{tag}` LIKE '%' AND tags.kind = 'downstream'", uri=made.uri, experiment="crisscross")
    mlflow.log_metric(runs[0]["run_id"], "eval/recall_at_1_v", float("nan"))
    mlflow.log_metric(runs[1]["run_id"], "eval/other", float("inf"))
    mlflow.log_metric(runs[2]["run_id"], "EVAL/OTHER", 0.5)
    mlflow.set_tag(runs[3]["run_id"], "crisscross.error", "é" * 5000)
    mlflow.delete_run(runs[4]["run_id"])
    (number,) = (one.experiment_id for one in mlflow.search_experiments() if one.name == "crisscross")
    for experiment in (number, mlflow.create_experiment("another")):  # one has no metrics, one is not ours
        mlflow.create_run(experiment, tags={**runs[5]["tags"], "crisscross.identity": "f" * 64, "seed": "5"})
    return made


@pytest.fixture
def by_client(monkeypatch: pytest.MonkeyPatch):
    """Return a function that disables SQL, so that MLflow's client reads everything."""

    def ask() -> None:
        monkeypatch.setattr(query, "read_runs", lambda *arguments, **options: None)
        monkeypatch.setattr(query, "read_experiment", lambda *arguments: None)

    return ask


def _read(store: Made, wanted: RunColumns) -> list[str]:
    runs = study_runs(store.name, wanted=wanted, uri=store.uri, experiment=EXPERIMENT)
    return [json.dumps(run, sort_keys=True) for run in runs]  # in which NaN equals NaN


@pytest.mark.parametrize(
    "wanted",
    [
        RunColumns((*COLUMNS_OF_TAGS.values(), "mlflow.note.content", "not there"), PARAMS, METRICS),
        RunColumns(tags=("crisscross.identity",)),
        RunColumns(params=("data.fingerprint",), metrics=""),
    ],
    ids=["tables", "identities", "all metrics"],
)
def test_sql_and_mlflows_client_return_the_same_runs(store, by_client, wanted):
    found = _read(store, wanted)
    assert len(found) == SEEDS * 3 - 1 + 1  # one is deleted, one was added
    by_client()
    assert _read(store, wanted) == found


def test_the_oddities_are_there(store):
    found = "\n".join(_read(store, RunColumns(("crisscross.error",), (), METRICS)))
    assert "NaN" in found
    assert "1.7976931348623157e+308" in found  # how MLflow stores infinity
    assert '"metrics": {}' in found
    assert r"\u00e9" * 5000 in found
    assert "EVAL" not in found


def test_tables_are_byte_identical_either_way(store, by_client, tmp_path, capsys):
    def files(name: str) -> dict[str, bytes]:
        assert print_all(store.uri, experiment=EXPERIMENT, studies={STUDY: None}, out=tmp_path / name) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    by_sql, printed = files("sql"), capsys.readouterr().out
    assert sorted(Path(name).suffix for name in by_sql) == [".csv", ".html", ".md", ".tex"]
    by_client()
    assert files("client") == by_sql
    assert capsys.readouterr().out.replace(f"{tmp_path}/client", f"{tmp_path}/sql") == printed


def test_everything_that_has_a_column_is_read(store):
    everything = search_runs(f"tags.`study.{store.name}` LIKE '%'", uri=store.uri, experiment=EXPERIMENT)
    wanted = RunColumns((*COLUMNS_OF_TAGS.values(), f"study.{store.name}"), PARAMS, METRICS)
    few = tidy(study_runs(store.name, wanted=wanted, uri=store.uri, experiment=EXPERIMENT), study=store.name)
    assert few.equals(tidy(everything, study=store.name)[few.columns])
    assert (few["backbone"] != "").any()


def test_reading_leaves_no_trace_and_mlflow_alone(store, tmp_path):
    before = sorted(store.file.parent.iterdir()), store.file.read_bytes(), store.file.stat().st_mtime_ns
    code = (
        "import sys; from analysis.make_tables import main; code = main(sys.argv[1:]);"
        " sys.exit(code or 'mlflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "--uri", store.uri, "--out", str(tmp_path / "tables"), "--read-only"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (sorted(store.file.parent.iterdir()), store.file.read_bytes(), store.file.stat().st_mtime_ns) == before


def test_what_sql_cannot_read_is_left_to_mlflow(store, tmp_path):
    wanted, tag = RunColumns(("kind",), ("seed",), METRICS), f"study.{store.name}"

    def read(uri: str, experiment: str = EXPERIMENT):
        return query.read_runs(uri, experiment, having=tag, wanted=wanted)

    for table in ("latest_metrics", "params", "tags", "runs", "experiment_tags", "experiments"):
        changed = tmp_path / f"{table}.db"
        shutil.copy(store.file, changed)
        with sqlite3.connect(changed) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO {table}_of_another_mlflow")
        connection.close()
        assert read(f"sqlite:///{changed}") is None
    (tmp_path / "text.db").write_text("no database at all")
    for uri in (
        "sqlite:///none.db",
        f"sqlite:///{tmp_path}/text.db",
        "http://127.0.0.1:9",
        "postgresql://127.0.0.1:9/x",
    ):
        assert read(uri) is None
        assert query.read_experiment(uri, EXPERIMENT) is None
    assert read(store.uri, "no such experiment") is None
    assert len(read(store.uri)) == SEEDS * 3


def test_half_a_delivery_is_not_read(store, monkeypatch):
    monkeypatch.setattr(query, "LOCK_TIMEOUT_S", 0.1)
    with (
        file_lock(f"{store.file}.lock"),
        pytest.raises(TrackingError, match=r"could not be acquired"),
    ):
        experiment_tags(uri=store.uri, experiment=EXPERIMENT)


def test_an_older_store_and_an_odd_path_are_read(tmp_path):
    file = tmp_path / "50 % of a? store#1.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(OLD_SCHEMA)
    connection.close()
    found = query.read_experiment(f"sqlite:///{file}", EXPERIMENT)
    assert found == query.ExperimentRecord("3", {"study.relaxation.latest": "0123abcd"})
