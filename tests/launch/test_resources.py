from __future__ import annotations

from pathlib import Path

import pytest

from launch import resources as capacity
from launch.resources import capacity_of, visible_gpus
from tests.launch.support import pretraining


def _execution(**changes: object) -> dict[str, object]:
    return {"device": "auto", "num_devices": 1, "num_threads": 1, **changes}


@pytest.fixture(autouse=True)
def _four_cores_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "num_cores", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("execution", "max_parallel", "at_a_time"),
    [
        (_execution(), None, 4),
        (_execution(num_threads=2), None, 2),
        (_execution(num_threads=2, num_devices=2), None, 1),
        (_execution(num_threads=16), None, 1),
        (_execution(), 3, 3),
    ],
)
def test_cores_are_shared_out(
    tmp_path: Path, execution: dict[str, object], max_parallel: int | None, at_a_time: int
) -> None:
    experiments = [pretraining(tmp_path, execution=execution)]
    assert capacity_of(experiments, max_parallel=max_parallel).at_a_time(experiments) == at_a_time


def test_gpus_are_shared_out_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    experiments = [pretraining(tmp_path, execution=_execution())]
    found = capacity_of(experiments)
    assert (found.total, found.unit, found.gpus) == (3, "GPUs", ("3", "5", "7"))
    on_cpu = [pretraining(tmp_path, execution=_execution(device="cpu"))]
    assert capacity_of(on_cpu).unit == "cores"
    with pytest.raises(ValueError, match=r"^execution.num_devices=4: this machine shows 3 GPU\(s\): lower it$"):
        capacity_of([pretraining(tmp_path, execution=_execution(num_devices=4))])


def test_a_gpu_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        capacity_of([pretraining(tmp_path, execution=_execution(device="cuda"))])
    assert str(caught.value) == (
        "execution.device=cuda: this machine shows no GPU (nvidia-smi): use execution.device=auto or cpu"
    )


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA H100 (UUID: GPU-3)"
    )
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus() == ("0", "1")
    script.write_text("#!/bin/sh\nexit 9\n")  # a driver that is not there
    assert visible_gpus() == ()
