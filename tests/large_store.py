"""A SQLite store with any number of runs, each as a sync makes it: one seed of studies, multiplied.

The runs of one seed are planned and synced by the project's own code; their rows are then written again for each
further seed, with what a seed changes: ids, identities, names, parents, numbers.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisscross.run.metrics_log import MetricsLog
from crisscross.run.run_dir import RunDirectory
from crisscross.tracking.sync import set_latest_tag, sync_runs
from crisscross.utils.files import write_json
from launch.study.plan import create_runs, make_plan

EXPERIMENT = "crisscross"
TABLES = ("runs", "params", "tags", "latest_metrics", "metrics")
LOSSES = [f"loss/{name}" for name in ("total", "v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "v2a1")]
OTHERS = ("collapse/audio_std", "collapse/video_std", "optim/lr_base", "optim/gradient_norm", "time/step_s")
POINTS = 5
"""Steps in the history of a pretraining; real ones have hundreds, which no reading of tables looks at."""


@dataclass(frozen=True)
class Template:
    """One seed of some studies in a store.

    Attributes:
        file: the SQLite file.
        fingerprints: of the studies, by name.
    """

    file: Path
    fingerprints: Mapping[str, str]

    @property
    def uri(self) -> str:
        """MLflow's tracking URI."""
        return f"sqlite:///{self.file}"


def sync_template(folder: Path, studies: Iterable[str]) -> Template:
    """Plan studies at demo scale, write what their jobs would have written, and sync it to ``folder/mlflow.db``."""
    uri, fingerprints = f"sqlite:///{folder}/mlflow.db", {}
    runs: dict[str, RunDirectory] = {}

    def prepare(data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "fingerprint": "f" * 64}

    for study in studies:
        plan = make_plan(study, [f"runs_root={folder / 'runs'}", f"tracking.uri={uri}"], prepare=prepare)
        fingerprints[study] = plan.fingerprint
        runs |= create_runs(plan, launched=1e9)
    for run in runs.values():
        _finish(run)
    report = sync_runs(list(runs.values()), uri, EXPERIMENT)
    if report.failures:
        raise RuntimeError(report.reason)
    for study, fingerprint in fingerprints.items():
        set_latest_tag(study, fingerprint, uri=uri, experiment=EXPERIMENT)
    return Template(folder / "mlflow.db", fingerprints)


def _finish(run: RunDirectory) -> None:
    """Write a history and a result."""
    config = run.config
    if run.about["kind"] == "pretrain":
        metrics_log = MetricsLog(run.metrics_path)
        for step in range(1, POINTS + 1):
            metrics_log.write(step, {name: 1 / (step + at) for at, name in enumerate([*LOSSES, *OTHERS])})
        write_json(run.path / "durable.json", {"step": POINTS, "metrics_bytes": metrics_log.sync()})
        metrics_log.close()
        run.write_result({"steps": POINTS, "metrics": {}})
        return
    protocol, folds = config["downstream"], config["data"].get("folds") or []
    ranks = protocol.get("ranks")
    measures = [f"eval/recall_at_{rank}" for rank in ranks] if ranks else ["eval/top1", "eval/top5", "svm/c"]
    names = [f"{measure}_{modality}" for measure in measures for modality in protocol.get("modalities", ["v"])]
    names += [f"{name}_fold{fold}" for name in names for fold in folds if len(folds) > 1]
    run.write_result({"metrics": {name: (7 * at % 11 + 1) / 13 for at, name in enumerate(names)}})


def multiply(template: Template, file: Path, *, num_runs: int, seeds_per_variant: int | None = None) -> int:
    """Write a store with at least so many runs.

    Args:
        template: the runs of seed 0.
        file: SQLite file to write.
        num_runs: at least; all runs of a seed are there.
        seeds_per_variant: how many seeds are of the variant launched last; the others are of older variants of the
            same studies, with as many each. None = all are of one.

    Returns:
        The number of runs.
    """
    with sqlite3.connect(template.file) as source, sqlite3.connect(file) as target:
        source.backup(target)
        (num_templates,) = target.execute("SELECT count(*) FROM runs").fetchone()
        seeds = -(-num_runs // num_templates)
        per_variant = seeds_per_variant or seeds
        for table in TABLES:
            cursor = target.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in cursor.description]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor]
            insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
            for seed in range(1, seeds):
                target.executemany(insert, _of_seed(rows, seed, seed // per_variant))
        older = [
            (f"study.{study}.{_other(fingerprint, variant)[:8]}", str(1e9 - variant))
            for study, fingerprint in template.fingerprints.items()
            for variant in range(1, -(-seeds // per_variant))
        ]
        target.executemany(f"INSERT INTO experiment_tags (key, value, experiment_id) SELECT ?, ?, {_NUMBER}", older)
    for connection in (source, target):
        connection.close()
    return seeds * num_templates


_NUMBER = f"experiment_id FROM experiments WHERE name = '{EXPERIMENT}'"


def _other(text: str, number: int) -> str:
    """Return another text of hexadecimal digits, of the same length up to 64."""
    return hashlib.sha256(f"{text} {number}".encode()).hexdigest()[: len(text)] if number else text


def _of_seed(rows: Iterable[Mapping[str, Any]], seed: int, variant: int) -> Iterable[Sequence[Any]]:
    """Return rows of a table as they are for another seed and variant."""
    for row in rows:
        changed = {**row, "run_uuid": _other(row["run_uuid"], seed)}
        key, value = row.get("key", ""), row.get("value")
        if key == "seed":
            changed["value"] = str(seed)
        elif key in ("crisscross.identity", "crisscross.parent_identity", "crisscross.claim", "mlflow.parentRunId"):
            changed["value"] = value and _other(value, seed)
        elif key == "mlflow.runName":
            changed["value"] = value.replace("-s0", f"-s{seed}")
        elif key.startswith("study."):
            study, fingerprint = key.rsplit(".", 1)
            changed["key"] = f"{study}.{_other(fingerprint, variant)[:8]}"
        elif key.startswith("eval/"):
            changed["value"] = value * (1 - seed % 17 / 100)
        elif "name" in row:
            changed["name"] = row["name"].replace("-s0", f"-s{seed}")
        yield tuple(changed.values())
