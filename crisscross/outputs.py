"""Figures and other files made of a study, kept in MLflow: one run a study and kind, each content sent once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from crisscross.mlflow_store import Store
from crisscross.sql_reader import Wanted, read_runs

MADE_OF = "crisscross.made_of"


def are_kept(files: Mapping[str, Path], *, kind: str, of: str, uri: str, experiment: str) -> bool:
    """Whether a database is known to have files already, which is seen without MLflow: importing it takes seconds.

    Args:
        files: see ``keep_outputs``.
        kind: see ``keep_outputs``.
        of: see ``keep_outputs``.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Raises:
        TrackingError: when a delivery to the store's file does not come to an end.
    """
    digests = {_noted(name): _digest(path) for name, path in files.items()}
    runs = read_runs(uri, experiment, having=MADE_OF, wanted=Wanted(tags=(MADE_OF, *digests)))
    wanted = {MADE_OF: f"{kind} {of}", **digests}
    return any(run["tags"] == wanted for run in runs or ())


def keep_outputs(store: Store, files: Mapping[str, Path], *, kind: str, of: str, description: str) -> tuple[str, ...]:
    """Keep files as artifacts of the run of that kind and study, which is made where it is not there.

    What a file holds is noted in a tag, ``sha256.<name>``, after it was sent: a kill in between sends it again.

    Args:
        store: an open MLflow experiment.
        files: by artifact name.
        kind: such as ``figures``.
        of: ``<study>.<fingerprint>``. No tag of the run is ``study.<...>``: it is none of the study's experiments.
        description: the text on top of the run's page.

    Returns:
        The artifact names whose content was new.
    """
    study = of.partition(".")[0]
    tags = {"kind": kind, "study": study, "mlflow.note.content": description, MADE_OF: f"{kind} {of}"}
    run_id = store.find_run(MADE_OF, tags[MADE_OF])
    if run_id is None or not store.has_run(run_id):
        run_id = store.create_run(f"{kind}-{of.replace('.', '-')}", start_ms=int(1000 * time.time()), tags=tags)
    known, sent = store.tags_of(run_id), []
    for name, path in files.items():
        digest = _digest(path)
        if known.get(_noted(name)) != digest:
            store.log_file(run_id, path, name)
            store.set_tags(run_id, {_noted(name): digest})
            sent.append(name)
    if sent:
        store.set_tags(run_id, {key: text for key, text in tags.items() if known.get(key) != text})
        store.set_status(run_id, "FINISHED", end_ms=int(1000 * time.time()))
    return tuple(sent)


def _noted(name: str) -> str:
    return f"sha256.{name}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
