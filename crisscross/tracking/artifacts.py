"""Log figures and other files made of a study to MLflow.

There is one MLflow run a study and kind, and each content is sent once.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import RunColumns, read_runs
from crisscross.tracking.store import open_store
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:  # it imports MLflow
    from crisscross.tracking.client import Store


MADE_OF = "crisscross.made_of"


def log_artifacts_once(
    files: Mapping[str, Path], *, kind: str, of: str, description: str, uri: str, experiment: str
) -> tuple[str, ...]:
    """Log files of a study as artifacts, once for each content.

    Args:
        files: by artifact name, such as ``figures/relaxation-1a2b3c4d.png``.
        kind: kind of the MLflow run that has them, such as ``figures``.
        of: ``<study>.<fingerprint>``; it has one such run.
        description: text at the top of that run's page.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Returns:
        The artifact names whose content is new.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses.
    """
    if already_logged(files, kind=kind, of=of, uri=uri, experiment=experiment):
        return ()
    store = open_store(uri, experiment)
    with store.exclusively():
        return _log_artifacts(store, files, kind=kind, of=of, description=description)


def already_logged(files: Mapping[str, Path], *, kind: str, of: str, uri: str, experiment: str) -> bool:
    """Whether a database has these files already.

    The check needs no import of MLflow. It is False for a server.

    Args:
        files: see ``log_artifacts_once``.
        kind: see ``log_artifacts_once``.
        of: see ``log_artifacts_once``.
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.

    Raises:
        TrackingError: if another process holds the lock of the SQLite file for too long.
    """
    digests = {_digest_tag(name): _digest(path) for name, path in files.items()}
    runs = read_runs(uri, experiment, having=MADE_OF, wanted=RunColumns(tags=(MADE_OF, *digests)))
    wanted = {MADE_OF: f"{kind} {of}", **digests}
    return any(run["tags"] == wanted for run in runs or ())


def _log_artifacts(store: Store, files: Mapping[str, Path], *, kind: str, of: str, description: str) -> tuple[str, ...]:
    """Log files to the run of that kind and study.

    The run is created if missing. The tag ``sha256.<name>`` is set after a file is sent: a kill in between sends the
    file again. The run has no tag ``study.<...>``, because it is none of the study's experiments.
    """
    study = of.partition(".")[0]
    tags = {"kind": kind, "study": study, "mlflow.note.content": description, MADE_OF: f"{kind} {of}"}
    run_id = store.find_run(MADE_OF, tags[MADE_OF])
    if run_id is None or not store.has_run(run_id):
        run_id = store.create_run(f"{kind}-{of.replace('.', '-')}", start_ms=int(1000 * time.time()), tags=tags)
    known, sent = store.tags_of(run_id), []
    for name, path in files.items():
        digest = _digest(path)
        if known.get(_digest_tag(name)) != digest:
            store.log_file(run_id, path, name)
            store.set_tags(run_id, {_digest_tag(name): digest})
            sent.append(name)
    if sent:
        store.set_tags(run_id, {key: text for key, text in tags.items() if known.get(key) != text})
        store.set_status(run_id, "FINISHED", end_ms=int(1000 * time.time()))
    return tuple(sent)


def _digest_tag(name: str) -> str:
    return f"sha256.{name}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class ArtifactLogger:
    """Logger of files as artifacts.

    It prints one line, once, if the store cannot be written.
    """

    def __init__(self, uri: str, experiment: str, *, enabled: bool = True) -> None:
        """Set the store; nothing is opened yet.

        Args:
            uri: MLflow's tracking URI.
            experiment: name of the MLflow experiment.
            enabled: whether anything is logged at all.
        """
        self._place = {"uri": uri, "experiment": experiment}
        self._works = enabled

    def log(self, files: Mapping[str, Path], *, kind: str, of: str, description: str) -> None:
        """Log files, each content once; see ``log_artifacts_once``."""
        if not self._works or not files:
            return
        try:
            log_artifacts_once(files, kind=kind, of=of, description=description, **self._place)
        except (TrackingError, OSError, ValueError) as error:
            self._works = False
            reason = mask_passwords(" ".join(str(error).split()))
            print(f"what is written is not in MLflow ({kind} of {of}): {reason}", file=sys.stderr)
