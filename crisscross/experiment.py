"""Run one experiment, whatever it is, from its run directory alone. Starting it again is the same call."""

from __future__ import annotations

import logging
import os
import time

from crisscross.files import read_json, write_json
from crisscross.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def run(directory: RunDirectory) -> bool:
    """Run an experiment from wherever it stands to its end.

    Args:
        directory: its run directory.

    Returns:
        True when it is done (``result.json`` is written), False when it was interrupted and can go on.

    Raises:
        AlreadyRunningError: when another process works on it.
        ValueError, OSError, RuntimeError: when it failed; the message is one line that says what to do.
    """
    if directory.result is not None:
        return True
    if os.environ.get("RANK", "0") != "0":  # one of several processes of one experiment: rank 0 keeps the books
        return _dispatch(directory)
    with directory.lock():
        _note_launch(directory)
        directory.write_progress(state="running", phase="starting")
        try:
            done = _dispatch(directory)
        except BaseException as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            directory.write_progress(**{**(directory.progress or {}), "state": "failed", "error": first_line})
            raise
        state = "done" if done else "interrupted"
        directory.write_progress(**{**(directory.progress or {}), "state": state})
        return done


def _dispatch(directory: RunDirectory) -> bool:
    # Imported here: the login node imports this package to print a graph and must not wait for torch.
    if directory.kind == "pretrain":
        from crisscross.training.loop import pretrain

        return pretrain(directory)
    from crisscross.evaluation.evaluate import evaluate

    return evaluate(directory)


def _note_launch(directory: RunDirectory) -> None:
    """Keep a list of the times this experiment was started: the number of restarts is its length less one."""
    path = directory.path / "launches.json"
    write_json(path, [*(read_json(path) or []), {"time": time.time()}])
