"""How fast a training goes and how long it will take."""

from __future__ import annotations

import logging
import math
import time

import psutil
import torch

logger = logging.getLogger(__name__)


class ThroughputMeter:
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


INTERVAL_S = 5.0  # between two samples (chosen by us): a few points even for a demo of a minute
MEGABYTE = 1e6


class SystemMonitor:
    """Samples the node of this process and the device that it computes on, every few seconds.

    What other jobs on a shared node do is counted too, except for the memory of the process itself.
    """

    def __init__(self, device: torch.device, *, interval_s: float = INTERVAL_S) -> None:
        """Begin to count.

        Args:
            device: what this process computes on.
            interval_s: the time between two samples.
        """
        self._device, self._interval_s = device, interval_s
        self._process = psutil.Process()
        self._next = -math.inf
        psutil.cpu_percent()  # the first answer covers no time

    def sample(self) -> dict[str, float]:
        """Return the metrics ``system/...``; none before it is time again.

        Megabytes are 10^6 bytes, percentages those of the whole node or device. Reading them takes about 0.1 ms.
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
    import pynvml

    try:
        return {"system/gpu_0_utilization_percentage": float(torch.cuda.utilization(device))}
    except (RuntimeError, pynvml.NVMLError):  # no driver library, or a slice of a GPU, which has no such count
        return {}
