"""The state of an experiment, read from its run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from crisscross.run.run_dir import RunDirectory

STALE_SECONDS = 30.0
"""A job that says it runs but has been silent for so long is looked at more closely. By us."""

_OPEN = ("queued", "running")
_NO_ERROR = ("interrupted", "cancelled", "done")


@dataclass(frozen=True)
class RunStatus:
    """Where an experiment stands.

    Attributes:
        state: queued, running, done, failed, interrupted, ...
        progress: how far it is, such as ``41 %``; empty when unknown.
        error: why it failed, one line; empty when it did not.
        result: the content of result.json once it is done, else None.
        ended_ms: when it ended, in milliseconds since 1970; None as long as it has not.
    """

    state: str
    progress: str
    error: str
    result: dict[str, Any] | None
    ended_ms: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, unless it is started again."""
        return self.state not in _OPEN


def read_state(run: RunDirectory, *, stale_s: float = STALE_SECONDS) -> RunStatus:
    """Read where an experiment stands from its files.

    Args:
        run: the run directory.
        stale_s: after how much silence a job that says it runs is believed only while it holds its lock.
    """
    result = run.result
    progress = run.progress or {}
    if result is not None:
        state = "done"
    else:
        state = progress.get("state", "queued")
        if state == "done":  # the proof of success is result.json alone
            state = "interrupted"
        silent_s = time.time() - progress.get("time", 0.0)
        if state == "running" and silent_s > stale_s and not run.is_locked:
            state = "interrupted"  # killed before it could say so
    is_over = state not in _OPEN
    last_word_s = (run.path / "result.json").stat().st_mtime if result is not None else progress.get("time")
    total = progress.get("total")
    return RunStatus(
        state=state,
        progress=f"{100 * progress.get('step', 0) / total:.0f} %" if total and result is None else "",
        error=str(progress.get("error") or "") if is_over and state not in _NO_ERROR else "",
        result=result,
        ended_ms=int(1000 * last_word_s) if is_over and last_word_s else None,
    )
