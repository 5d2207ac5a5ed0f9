"""Check that the environment can run jobs: their imports succeed, and PyTorch can use the GPU of the config.

    python -m launch.environment KIND ... [--cuda]      the checks that are possible on a login node

A job runs these checks before its experiment starts, and exits with ``ENVIRONMENT_EXIT_CODE`` if one fails: the
experiment has not failed, and every other one would end in the same way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from crisscross.run_experiment import work_of
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
    """No job can run in this environment.

    The message is one line with the cause and the remedy.
    """


def check_environment(kind: str, config: Mapping[str, Any]) -> None:
    """Import an experiment's modules and check its GPU.

    Args:
        kind: ``"pretrain"`` or ``"downstream"``.
        config: the resolved config.

    Raises:
        UnusableEnvironmentError: if an import fails or the GPU is not usable.
    """
    import_libraries([kind])
    device = config["execution"]["device"]
    if device == "cpu":
        return
    given = visible_gpus() or any(os.environ.get(name, "0") != "0" for name in _SLURM_GPUS)
    if device == "cuda" or given:
        _require_gpu(device)


def import_libraries(kinds: Sequence[str]) -> None:
    """Import the modules of experiments of these kinds.

    Raises:
        UnusableEnvironmentError: if an import fails for any reason.
    """
    for kind in kinds:
        try:
            work_of(kind)
        except Exception as error:  # an incompatible library raises ImportError, OSError, RuntimeError, ...
            name = type(error).__name__
            raise UnusableEnvironmentError(
                f"what a job imports does not load: {name}: {_one_line(error)}: {_REINSTALL}"
            ) from error


def _require_gpu(device: str) -> None:
    import torch  # here: the login node imports this module to plan a launch

    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it sees none"
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).split(". ")[0].rstrip(".")
    asked = "execution.device=cuda" if device == "cuda" else "this machine has a GPU"
    raise UnusableEnvironmentError(f"{asked}, but PyTorch {torch.__version__} cannot use one: {reason}: {_OTHER_BUILD}")


def _one_line(error: BaseException) -> str:
    """Return an error and its cause in one line.

    The cause names the missing symbol or file of a library.
    """
    texts = [" ".join(str(item).split()) for item in (error, error.__cause__ or error.__context__) if item is not None]
    return ": ".join(dict.fromkeys(text for text in texts if text))


def main(arguments: Sequence[str]) -> int:
    """Run the checks of a login node and return the exit code.

    It is 0, or ``ENVIRONMENT_EXIT_CODE`` with one line on stderr.
    """
    try:
        import_libraries([word for word in arguments if word != "--cuda"])
        if "--cuda" in arguments:
            _require_cuda_build()
    except UnusableEnvironmentError as error:
        print(error, file=sys.stderr)
        return ENVIRONMENT_EXIT_CODE
    return 0


def _require_cuda_build() -> None:
    import torch  # here: see _require_gpu

    if torch.version.cuda is None:
        raise UnusableEnvironmentError(
            f"jobs ask for GPUs, but PyTorch {torch.__version__} was built without CUDA: {_OTHER_BUILD}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
