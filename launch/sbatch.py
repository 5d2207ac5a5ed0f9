"""Talking to sbatch: the text of a job's script, its submission, and what Slurm says when it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # status and cancel import this module and need no pydantic
    from launch.cluster import ClusterSettings, Resources

SLURM_TIMEOUT_S = 60.0
"""How long one command of Slurm may take (chosen by us): a busy controller answers within seconds."""

KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_ACCOUNT")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_UNAVAILABLE_NOW = ("busy", "down, drained or reserved")


class SlurmError(ValueError):
    """Slurm refused, or is not there. One line, with Slurm's own reason."""


class NoSlurmError(SlurmError):
    """There is no Slurm on this machine."""


class SlurmSilentError(SlurmError):
    """Slurm did not answer in time. It may have done what it was asked for all the same."""


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
        code: variables that make Python import the snapshot, from ``launch.snapshot``.
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


def submit(script: Path) -> str:
    """Hand a script to sbatch and return the job's number.

    Raises:
        SlurmError: when Slurm refuses it.
    """
    found = re.match(r"(\d+)", slurm("sbatch", "--parsable", str(script)))
    if found is None:
        raise SlurmError(f"sbatch {script}: no job number in its answer")
    return found[1]


def check(script: Path) -> str:
    """Ask Slurm whether it would take a script (``sbatch --test-only``), and when it would start.

    Returns:
        What Slurm says, one line.

    Raises:
        SlurmError: when it would not.
    """
    done = _run(["sbatch", "--test-only", str(script)])
    said = _reason(done.stderr)
    if done.returncode and not any(words in said for words in _UNAVAILABLE_NOW):
        raise SlurmError(said)
    return said


def slurm(*command: str) -> str:
    """Run one of Slurm's commands and return what it prints.

    Raises:
        SlurmError: when it fails, with Slurm's reason.
    """
    done = _run(command)
    if done.returncode:
        reason = _reason(done.stderr) or f"{command[0]} ended with exit code {done.returncode}"
        raise SlurmSilentError(reason) if "timed out" in reason.lower() else SlurmError(reason)
    return done.stdout


def site_facts() -> dict[str, str]:
    """Return Slurm's configuration as ``scontrol show config`` prints it.

    Raises:
        SlurmError: when there is no Slurm here, or it does not answer.
    """
    pairs = (line.split("=", 1) for line in slurm("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S, env=clean_environment(), check=False
        )
    except FileNotFoundError:
        raise NoSlurmError(
            f"there is no Slurm on this machine (no {command[0]}): launch from a login node of the cluster, or leave"
            " hydra/launcher out to run here"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmSilentError(f"{command[0]} did not answer within {SLURM_TIMEOUT_S:.0f} s: try again") from None


def clean_environment() -> dict[str, str]:
    """Return our environment less what belongs to a job that we may be in ourselves: jobs inherit it from sbatch."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or (not name.startswith(("SLURM_", "SUBMITIT_")) and name not in _RANK_VARIABLES)
    }


def _reason(stderr: str) -> str:
    """Return what Slurm wrote to stderr as one line, without its program's name before each sentence."""
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))
