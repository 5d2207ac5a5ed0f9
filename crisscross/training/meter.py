"""How fast a training goes and how long it will take."""

from __future__ import annotations

import logging
import math
import time

import psutil

logger = logging.getLogger(__name__)


class Meter:
    """Throughput and time left, over the steps of this launch."""

    def __init__(self, samples_per_step: int) -> None:
        self._samples = samples_per_step
        self._last = time.monotonic()
        self._step_seconds: float | None = None
        self._waited = 0.0
        self._reported = -math.inf
        self._first = True

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def tick(self) -> dict[str, float]:
        """Note the end of a step and return what it took."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        waited, self._waited = self._waited, 0.0
        if self._first:
            self._first = False
            started = time.time() - psutil.Process().create_time()
            logger.info("first step done %.1f s after the process started", started)
        else:  # the first step pays for set-up
            smoothing = 0.1 if self._step_seconds is not None else 1.0
            self._step_seconds = (1 - smoothing) * (self._step_seconds or 0.0) + smoothing * took
        return {"time/step_s": took, "time/data_wait_s": waited, "time/samples_per_s": self._samples / took}

    @property
    def rate(self) -> float | None:
        """Samples a second, smoothed."""
        return None if self._step_seconds is None else self._samples / self._step_seconds

    def seconds_left(self, steps: int) -> float | None:
        """Estimate the time that so many steps take."""
        return None if self._step_seconds is None else steps * self._step_seconds

    def report_due(self) -> bool:
        """Whether half a second has passed since progress was last told."""
        now = time.monotonic()
        if now - self._reported < 0.5:
            return False
        self._reported = now
        return True
