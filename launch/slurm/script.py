"""The sbatch script of a job, rendered by submitit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from launch.study.cluster import ClusterSettings, Resources


class ScriptExecutor(SlurmExecutor):
    """An executor that renders sbatch scripts and submits nothing.

    submitit's own submission pickles a function and numbers an array's tasks from 0 without gaps. Here a job is
    assigned its experiments before sbatch (launch/slurm/assignments.py), and launch/slurm/submit.py calls sbatch.
    """

    @classmethod
    def affinity(cls) -> int:
        """Return 2, as on a cluster.

        A dry run renders scripts where there is no srun.
        """
        return 2

    def script(self, command: str, *, is_array: bool, **parameters: Any) -> str:
        """Return the script that runs a command under srun.

        Args:
            command: a shell command.
            is_array: whether the job is an array, so that the names of its log files contain the index.
            **parameters: submitit's parameters, such as ``timeout_min`` and ``mem_gb``.

        Raises:
            ValueError: if submitit has no such parameter.
        """
        self.update_parameters(**self._convert_parameters(parameters))
        if is_array:
            self.parameters["map_count"] = 1  # additional_parameters has the indices, which may have gaps
        return self._make_submission_file_text(command, uid="")


def script_text(
    *,
    command: Sequence[str],
    folder: Path,
    name: str,
    cluster: ClusterSettings,
    resources: Resources,
    code: Mapping[str, str],
    working_directory: Path,
    array: str | None = None,
    dependency: str | None = None,
    afterwards: Sequence[str] | None = None,
) -> str:
    """Return the sbatch script of a job or an array.

    Args:
        command: arguments of Python in each task: ``["-m", "launch.job", ...]``.
        folder: folder of the job's output files.
        name: the job's name.
        cluster: the cluster.
        resources: resources of the job, from ``cluster.resources_of``.
        code: environment variables with which Python imports the snapshot, from ``launch.slurm.snapshot``.
        working_directory: working directory of the job; compute nodes must be able to write there.
        array: indices of an array, such as ``0-3,7``; None = a single job.
        dependency: value of ``--dependency``; Slurm ends a job whose dependency can never be met.
        afterwards: arguments of Python for a command that runs if srun fails; the exit code of srun is appended. Its
            own exit code becomes that of the job.
    """
    more: dict[str, Any] = {"chdir": str(working_directory)}
    more |= {key: value for key, value in cluster.additional_parameters.items() if value is not False}
    if array is not None:
        more["array"] = f"{array}%{cluster.array_parallelism}"
    if dependency is not None:
        more["kill-on-invalid-dep"] = "yes"
    python = cluster.python_command()
    return ScriptExecutor(folder, python=python).script(
        f"{python} {shlex.join(command)}",
        is_array=array is not None,
        name=name,
        dependency=dependency,
        signal_delay_s=cluster.signal_seconds,
        setup=cluster.setup_lines(resources, code),
        stderr_to_stdout=True,
        wckey=None,
        teardown=None if afterwards is None else _teardown(f"{python} {shlex.join(afterwards)}"),
        srun_args=["--kill-on-bad-exit=1"],  # if one rank fails, srun ends the others, which would wait for it
        additional_parameters=more,
        **resources.model_dump(exclude_none=True),
    )


def _teardown(command: str) -> list[str]:
    """Return shell lines that run a command if srun failed.

    The script ends with the command's exit code.
    """
    return ["code=$?", f'if [ "$code" -ne 0 ]; then {command} "$code"; code=$?; fi', 'exit "$code"']
