"""Throughput of a training and load of its machine."""

from __future__ import annotations

import logging
import math
import time

import psutil
import pynvml
import torch

logger = logging.getLogger(__name__)
SMOOTHING = 0.1  # ours: weight of the latest step in the average duration
REPORT_INTERVAL_S = 0.5  # ours


class ThroughputMeter:
    """Throughput and remaining time, over the steps since the job started."""

    def __init__(self, samples_per_step: int) -> None:
        self._samples = samples_per_step
        self._last = time.monotonic()
        self._step_seconds: float | None = None
        self._waited = 0.0
        self._reported = -math.inf
        self._first = True

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waited += seconds

    def tick(self) -> dict[str, float]:
        """Mark the end of a step and return its ``time/...`` metrics."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        waited, self._waited = self._waited, 0.0
        if self._first:
            self._first = False
            started = time.time() - psutil.Process().create_time()
            logger.info("first step done %.1f s after the process started", started)
        else:  # the first step includes set-up
            smoothing = SMOOTHING if self._step_seconds is not None else 1.0
            self._step_seconds = (1 - smoothing) * (self._step_seconds or 0.0) + smoothing * took
        return {"time/step_s": took, "time/data_wait_s": waited, "time/samples_per_s": self._samples / took}

    @property
    def rate(self) -> float | None:
        """Samples per second, smoothed; None before the second step."""
        return None if self._step_seconds is None else self._samples / self._step_seconds

    def seconds_left(self, steps: int) -> float | None:
        """Estimate the seconds that a number of steps take."""
        return None if self._step_seconds is None else steps * self._step_seconds

    def report_due(self) -> bool:
        """Return whether ``REPORT_INTERVAL_S`` has passed since the last True."""
        now = time.monotonic()
        if now - self._reported < REPORT_INTERVAL_S:
            return False
        self._reported = now
        return True


INTERVAL_S = 5.0  # ours: a few samples even in a demo of one minute
MEGABYTE = 1e6


class SystemMonitor:
    """Periodic measurements of the node's CPU and memory and the process's GPU.

    On a shared node the numbers include other jobs, except the memory of the process.
    """

    def __init__(self, device: torch.device, *, interval_s: float = INTERVAL_S) -> None:
        """Start the CPU measurement.

        Args:
            device: device of this process.
            interval_s: seconds between two samples.
        """
        self._device, self._interval_s = device, interval_s
        self._process = psutil.Process()
        self._next = -math.inf
        psutil.cpu_percent()  # the first call returns 0

    def sample(self) -> dict[str, float]:
        """Return the metrics ``system/...``; empty before the interval has passed.

        Megabytes are 10^6 bytes, percentages are of the whole node or device. A call takes about 0.1 ms.
        """
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + self._interval_s
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        return found | (self._gpu() if self._device.type == "cuda" else {})

    def _gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        return {
            "system/gpu_0_memory_usage_megabytes": (total - free) / MEGABYTE,
            "system/gpu_0_memory_usage_percentage": 100 * (1 - free / total),
            **_gpu_utilization(self._device),
        }


def _gpu_utilization(device: torch.device) -> dict[str, float]:
    try:
        return {"system/gpu_0_utilization_percentage": float(torch.cuda.utilization(device))}
    except (RuntimeError, pynvml.NVMLError):  # no driver library, or a MIG slice, which has no utilization
        return {}
