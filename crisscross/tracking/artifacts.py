"""Figures and other files made of a study, kept in MLflow: one run a study and kind, each content sent once."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from crisscross.tracking.client import Store, TrackingError
from crisscross.tracking.query import RunColumns, read_runs
from crisscross.utils.redact import mask_passwords


def log_outputs(
    files: Mapping[str, Path], *, kind: str, of: str, description: str, uri: str, experiment: str
) -> tuple[str, ...]:
    """Keep files that were made of a study as artifacts, once for each content; see ``crisscross.tracking.artifacts``.

    Args:
        files: by artifact name, such as ``figures/relaxation-1a2b3c4d.png``.
        kind: what they are, ``figures``: the kind of the MLflow run that has them.
        of: ``<study>.<fingerprint>``; it has one such run.
        description: the text on top of that run's page.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        The artifact names that were new.

    Raises:
        TrackingError: when MLflow cannot be reached or refuses.
    """
    if are_kept(files, kind=kind, of=of, uri=uri, experiment=experiment):
        return ()
    store = Store(uri, experiment)
    with store.exclusively():
        return keep_outputs(store, files, kind=kind, of=of, description=description)


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
    runs = read_runs(uri, experiment, having=MADE_OF, wanted=RunColumns(tags=(MADE_OF, *digests)))
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


class Keeper:
    """Keeps files as artifacts. A store that cannot be written is told of once, in one line: the files are there."""

    def __init__(self, uri: str, experiment: str, *, enabled: bool = True) -> None:
        """Say where; nothing is opened yet.

        Args:
            uri: MLflow's tracking URI.
            experiment: name of the MLflow experiment.
            enabled: whether anything is to be kept at all.
        """
        self._place = {"uri": uri, "experiment": experiment}
        self._works = enabled

    def keep(self, files: Mapping[str, Path], *, kind: str, of: str, description: str) -> None:
        """Keep files, each content once; see ``crisscross.tracking.artifacts.log_outputs``."""
        if not self._works or not files:
            return
        try:
            log_outputs(files, kind=kind, of=of, description=description, **self._place)
        except (TrackingError, OSError, ValueError) as error:
            self._works = False
            reason = mask_passwords(" ".join(str(error).split()))
            print(f"what is written is not in MLflow ({kind} of {of}): {reason}", file=sys.stderr)
