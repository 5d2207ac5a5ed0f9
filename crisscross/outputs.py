"""Figures and other files made of a study, kept in MLflow: one run a study and kind, each content sent once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from crisscross.mlflow_store import Store


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
    tags = {"kind": kind, "study": study, "mlflow.note.content": description, "crisscross.made_of": f"{kind} {of}"}
    run_id = store.find_run("crisscross.made_of", tags["crisscross.made_of"])
    if run_id is None or not store.has_run(run_id):
        run_id = store.create_run(f"{kind}-{of.replace('.', '-')}", start_ms=int(1000 * time.time()), tags=tags)
    known, sent = store.tags_of(run_id), []
    for name, path in files.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if known.get(f"sha256.{name}") != digest:
            store.log_file(run_id, path, name)
            store.set_tags(run_id, {f"sha256.{name}": digest})
            sent.append(name)
    if sent:
        store.set_tags(run_id, {key: text for key, text in tags.items() if known.get(key) != text})
        store.set_status(run_id, "FINISHED", end_ms=int(1000 * time.time()))
    return tuple(sent)
