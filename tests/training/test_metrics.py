"""System metrics have the names of MLflow's page of system metrics."""

from __future__ import annotations

import torch

from crisscross.training.metrics import SystemMonitor
from tests.support import needs_cuda


def test_samples_come_at_intervals_and_are_possible() -> None:
    load = SystemMonitor(torch.device("cpu"), interval_s=3600)
    first = load.sample()
    assert load.sample() == {}
    assert all(name.startswith("system/") for name in first)
    for name, value in first.items():
        assert 0 <= value <= (100 if name.endswith("percentage") else 1e9), name
    assert first["system/process_memory_usage_megabytes"] < first["system/system_memory_usage_megabytes"] * 1.5


@needs_cuda
def test_a_gpu_is_sampled_too() -> None:
    block = torch.zeros(64_000_000 // 4, device="cuda")
    found = SystemMonitor(torch.device("cuda")).sample()
    assert found["system/gpu_0_memory_usage_megabytes"] > block.numel() * 4 / 1e6
    assert 0 < found["system/gpu_0_memory_usage_percentage"] <= 100
