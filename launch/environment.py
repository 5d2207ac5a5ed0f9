"""Whether the environment can run jobs at all: what they import loads, and PyTorch can use the GPU that they ask for.

    python -m launch.environment KIND ... [--cuda]      what a login node can know of its jobs' environment

A job checks this before its experiment begins and ends with ``ENVIRONMENT_EXIT_CODE``: the experiment has not failed,
and every other one would end in the same way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from launch.resources import visible_gpus

ENVIRONMENT_EXIT_CODE = 78
"""EX_CONFIG of <sysexits.h>."""

_SLURM_GPUS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
_REINSTALL = (
    "install the versions that pyproject.toml fixes (remove .venv and uv.lock and run the command again), or see"
    ' "Another environment" in launch/README.md'
)
_OTHER_BUILD = (
    'update the driver, use a PyTorch built for it ("Another environment" in launch/README.md), or compute on the CPU'
    " (execution.device=cpu)"
)


class UnusableEnvironmentError(RuntimeError):
    """No job can run in this environment. One line with the cause and the remedy."""


def check_environment(kind: str, config: Mapping[str, Any]) -> None:
    """Import what an experiment imports and look for the GPU that it asks for; takes seconds, which it then saves.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: its config.

    Raises:
        UnusableEnvironmentError: if either is impossible.
    """
    import_libraries([kind])
    device = config["execution"]["device"]
    if device == "cpu":
        return
    given = visible_gpus() or any(os.environ.get(name, "0") != "0" for name in _SLURM_GPUS)
    if device == "cuda" or given:
        _require_gpu(device)


def import_libraries(kinds: Sequence[str]) -> None:
    """Import what experiments of these kinds need.

    Raises:
        UnusableEnvironmentError: if that is impossible, whatever the reason.
    """
    from crisscross.run_experiment import work_of

    for kind in kinds:
        try:
            work_of(kind)
        except Exception as error:  # a library that does not fit raises anything: ImportError, OSError, RuntimeError
            name = type(error).__name__
            raise UnusableEnvironmentError(
                f"what a job imports does not load: {name}: {_one_line(error)}: {_REINSTALL}"
            ) from error


def _require_gpu(device: str) -> None:
    import torch

    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it sees none"
    except (RuntimeError, AssertionError) as error:  # the latter where it was built without CUDA
        reason = str(error).split(". ")[0].rstrip(".")
    asked = "execution.device=cuda" if device == "cuda" else "this machine has a GPU"
    raise UnusableEnvironmentError(f"{asked}, but PyTorch {torch.__version__} cannot use one: {reason}: {_OTHER_BUILD}")


def _one_line(error: BaseException) -> str:
    """Return an error with its cause, which names the symbol or file that a library misses."""
    texts = [" ".join(str(item).split()) for item in (error, error.__cause__ or error.__context__) if item is not None]
    return ": ".join(dict.fromkeys(text for text in texts if text))


def main(arguments: Sequence[str]) -> int:
    """Check what can be known without a job; return 0, or ``ENVIRONMENT_EXIT_CODE`` with one line on stderr."""
    try:
        import_libraries([word for word in arguments if word != "--cuda"])
        if "--cuda" in arguments:
            _require_cuda_build()
    except UnusableEnvironmentError as error:
        print(error, file=sys.stderr)
        return ENVIRONMENT_EXIT_CODE
    return 0


def _require_cuda_build() -> None:
    import torch

    if torch.version.cuda is None:
        raise UnusableEnvironmentError(
            f"jobs ask for GPUs, but PyTorch {torch.__version__} was built without CUDA: {_OTHER_BUILD}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
