"""Before jobs are submitted: try on the login node whether what they run can be imported at all.

What a compute node alone can know, such as its driver, a job finds out by itself (launch/environment.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crisscross.utils.files import read_json, write_json
from launch.environment import ENVIRONMENT_EXIT_CODE, UnusableEnvironmentError
from launch.slurm.commands import clean_environment
from launch.slurm.script import setup_lines
from launch.study.cluster import ClusterSettings, resource_kind
from launch.study.graph import Experiment

PASSED = "environment.json"
TIMEOUT_S = 600.0
"""Importing from a slow shared disk, or starting a container, can take minutes (chosen by us)."""


def check_imports(
    cluster: ClusterSettings,
    experiments: Sequence[Experiment],
    *,
    code: Mapping[str, str],
    runs_root: Path,
    say: Callable[[str], None],
) -> None:
    """Import here what the jobs of these experiments import, by their own interpreter after their own set-up lines.

    Done once for each environment and code: ``runs_root/slurm/environment.json`` notes what has passed.

    Args:
        cluster: the cluster.
        experiments: what is to be submitted.
        code: variables that make Python import the snapshot.
        runs_root: folder of the run directories.
        say: told what could not be tried on this machine.

    Raises:
        UnusableEnvironmentError: if their imports fail.
    """
    if not experiments:
        return
    resources = [cluster.resources_of(kind) for kind in dict.fromkeys(resource_kind(item) for item in experiments)]
    asked = list(dict.fromkeys(item.kind for item in experiments))
    asked += ["--cuda"] if any(item.gpus_per_node for item in resources) else []
    command = f"{cluster.python_command()} -m launch.environment {shlex.join(asked)}"
    script = "\n".join([*setup_lines(cluster, resources[0], code), command])
    passed = runs_root / "slurm" / PASSED
    key = _key(script.replace(str(runs_root.resolve()), ""), cluster)
    if (read_json(passed) or {}).get("key") == key:
        return
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=clean_environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"warning: what jobs import was not tried on this machine: {' '.join(str(error).split())[:200]}")
        return
    words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == ENVIRONMENT_EXIT_CODE:
        raise UnusableEnvironmentError(f"jobs could not run: {words[-1]}; nothing was submitted")
    if done.returncode:
        say(f"warning: what jobs import could not be tried on this machine ({words[-1]}): {cluster.python_command()}")
        return
    passed.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(passed, {"key": key, "time": time.time(), "command": command})


def _key(script: str, cluster: ClusterSettings) -> str:
    """Return what changes with the script, the packages installed here, and the files that its command names."""
    installed = sorted(f"{item.name} {item.version}" for item in importlib.metadata.distributions())
    files = [Path(word) for word in shlex.split(cluster.python_command()) if Path(word).is_file()]
    stats = [f"{file} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join([script, *installed, *stats]).encode()).hexdigest()
