"""The script that sbatch is given."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # status and cancel import this module and need no pydantic
    from launch.study.cluster import ClusterSettings, Resources


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
    """Return an sbatch script. submitit renders it: the keywords of its renderer are the options of sbatch.

    Args:
        command: what each task runs, less the interpreter: ``["-m", "launch.job", ...]``.
        folder: where Slurm writes what the job prints.
        name: the job's name.
        cluster: the cluster.
        resources: what the job asks for, from ``cluster.resources_of``.
        code: variables that make Python import the snapshot, from ``launch.slurm.snapshot``.
        working_directory: where the job starts; compute nodes must be able to write there.
        array: indices of an array, such as ``0-3,7``; None = a job by itself.
        dependency: for ``--dependency``; a job whose dependency can never be met ends.
        afterwards: what is run, with the exit code as its last argument, when the command did not succeed; less the
            interpreter. Its own exit code is the job's.
    """
    from submitit.slurm.slurm import _convert_mem, _make_sbatch_string

    more: dict[str, Any] = {"chdir": str(working_directory), **_additional(cluster)}
    if array is not None:
        more["array"] = f"{array}%{cluster.array_parallelism}"
    if dependency is not None:
        more["kill-on-invalid-dep"] = "yes"
    python = cluster.python_command()
    asked = resources.model_dump(exclude={"timeout_min", "mem_gb", "tasks_per_node"}, exclude_none=True)
    return _make_sbatch_string(
        command=f"{python} {shlex.join(command)}",
        folder=folder,
        job_name=name,
        time=resources.timeout_min,
        mem=None if resources.mem_gb is None else _convert_mem(resources.mem_gb),
        ntasks_per_node=resources.tasks_per_node,
        dependency=dependency,
        signal_delay_s=cluster.signal_seconds,
        setup=setup_lines(cluster, resources, code),
        stderr_to_stdout=True,
        map_count=None if array is None else 1,
        wckey=None,  # type: ignore[arg-type]  # leaves the option out, as with all the others
        teardown=None if afterwards is None else _teardown(f"{python} {shlex.join(afterwards)}"),
        srun_args=["--kill-on-bad-exit=1"],  # a rank that dies takes the others with it: none waits for it for ever
        additional_parameters=more,
        **asked,
    )


def _additional(cluster: ClusterSettings) -> dict[str, Any]:
    """Return the further options of sbatch; a switch that is off is left out."""
    return {key: value for key, value in cluster.additional_parameters.items() if value is not False}


def setup_lines(cluster: ClusterSettings, resources: Resources, code: Mapping[str, str]) -> list[str]:
    """Return what a script does before Python starts: the site's own lines first, as modules change variables."""
    lines = list(cluster.setup)
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in cluster.environment.items()]
    for name, value in code.items():
        behind = "${PYTHONPATH:+:$PYTHONPATH}" if name == "PYTHONPATH" else ""
        lines.append(f"export {name}={shlex.quote(value)}{behind}")
    lines.append("export PYTHONUNBUFFERED=1")
    if cluster.local_disk is not None:
        lines.append(f'export TMPDIR="{cluster.local_disk}"')
    if resources.cpus_per_task is not None:  # since 22.05 srun does not take it from sbatch by itself
        lines.append(f"export SRUN_CPUS_PER_TASK={resources.cpus_per_task}")
    return lines


def _teardown(command: str) -> list[str]:
    """Return what a script does when srun has ended without success; what that returns is the script's exit code."""
    return ["code=$?", f'if [ "$code" -ne 0 ]; then {command} "$code"; code=$?; fi', 'exit "$code"']
