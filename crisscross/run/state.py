"""The states of an experiment, and its state as its run directory alone gives it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from crisscross.run.run_dir import RunDirectory

STALE_SECONDS = 30.0  # ours: a run that wrote nothing for so long runs only if a process holds its lock


class RunState(StrEnum):
    """The state of an experiment. ``launch/status.py`` prints the values."""

    NOT_STARTED = "not started"
    QUEUED = "queued"
    WAITING = "waiting"
    """For a parent that is not done."""
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """The next start resumes it."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    PARENT_INTERRUPTED = "parent interrupted"
    PARENT_CANCELLED = "parent cancelled"
    PARENT_FAILED = "parent failed"
    DONE = "done"

    @property
    def in_progress_json(self) -> str:
        """The word for it in ``progress.json`` and in the MLflow tag ``crisscross.state``."""
        return _WORDS_ON_DISK.get(self, self.value)

    @property
    def is_over(self) -> bool:
        """Whether nothing follows unless the experiment is started again."""
        return self not in (RunState.NOT_STARTED, RunState.QUEUED, RunState.WAITING, RunState.RUNNING)

    @property
    def of_child(self) -> RunState | None:
        """State of an experiment whose parent ended in this state.

        None if the experiment can still run.
        """
        return _OF_CHILD.get(self)


_WORDS_ON_DISK = {
    RunState.NOT_STARTED: "queued",
    RunState.WAITING: "queued",
    RunState.PARENT_INTERRUPTED: "queued",
    RunState.PARENT_CANCELLED: "blocked",
    RunState.PARENT_FAILED: "blocked",
}
_OF_CHILD = {
    RunState.FAILED: RunState.PARENT_FAILED,
    RunState.PARENT_FAILED: RunState.PARENT_FAILED,
    RunState.CANCELLED: RunState.PARENT_CANCELLED,
    RunState.PARENT_CANCELLED: RunState.PARENT_CANCELLED,
}
_STATES = {**{state.value: state for state in RunState}, "blocked": RunState.PARENT_FAILED}
_HAS_ERROR = (RunState.FAILED, RunState.PARENT_FAILED)


@dataclass(frozen=True)
class RunStatus:
    """State of an experiment, with details from its run directory.

    Attributes:
        state: the state.
        progress: percentage of its steps, such as ``41 %``; empty if unknown or done.
        error: the reason of a failure in one line; else empty.
        result: content of ``result.json`` of a finished experiment, else None.
        ended_ms: time of its end in milliseconds since 1970; None before it.
    """

    state: RunState
    progress: str
    error: str
    result: dict[str, Any] | None
    ended_ms: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing follows unless the experiment is started again."""
        return self.state.is_over


def read_state(run: RunDirectory, *, stale_s: float = STALE_SECONDS) -> RunStatus:
    """Read the state of an experiment from its run directory.

    Args:
        run: the run directory.
        stale_s: seconds without progress after which a run counts as running only while a process holds its lock.
    """
    result = run.result
    progress = run.progress or {}
    state = RunState.DONE if result is not None else _unfinished(run, progress, stale_s)
    last_s = (run.path / "result.json").stat().st_mtime if result is not None else progress.get("time")
    total = progress.get("total")
    return RunStatus(
        state=state,
        progress=f"{100 * progress.get('step', 0) / total:.0f} %" if total and result is None else "",
        error=str(progress.get("error") or "") if state in _HAS_ERROR else "",
        result=result,
        ended_ms=int(1000 * last_s) if state.is_over and last_s else None,
    )


def state_on_disk(word: str) -> RunState:
    """Return the state for a word of ``progress.json``.

    An unknown word gives FAILED.
    """
    return _STATES.get(word, RunState.FAILED)


def _unfinished(run: RunDirectory, progress: Mapping[str, Any], stale_s: float) -> RunState:
    """Return the state of an experiment without a result."""
    state = state_on_disk(progress.get("state", RunState.QUEUED))
    if state is RunState.DONE:  # only result.json proves success
        return RunState.INTERRUPTED
    silent_s = time.time() - progress.get("time", 0.0)
    if state is RunState.RUNNING and silent_s > stale_s and not run.is_locked:
        return RunState.INTERRUPTED  # killed
    return state
