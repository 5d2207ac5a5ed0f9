"""Test the imports of jobs on the login node, before they are submitted.

Each job checks what depends on its compute node, such as the driver (launch/environment.py).
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
from launch.study.cluster import ClusterSettings, resource_kind
from launch.study.graph import Experiment

PASSED = "environment.json"
TIMEOUT_S = 600.0  # ours: imports from a slow shared disk, or the start of a container, can take minutes


def check_imports(
    cluster: ClusterSettings,
    experiments: Sequence[Experiment],
    *,
    code: Mapping[str, str],
    runs_root: Path,
    print_line: Callable[[str], None],
) -> None:
    """Test the imports of jobs with their interpreter and setup lines.

    It runs once for each environment and code: ``runs_root/slurm/environment.json`` records what passed.

    Args:
        cluster: the cluster.
        experiments: the experiments to submit.
        code: environment variables with which Python imports the snapshot.
        runs_root: folder of the run directories.
        print_line: called with a warning if this machine cannot run the test.

    Raises:
        UnusableEnvironmentError: if their imports fail.
    """
    if not experiments:
        return
    resources = [cluster.resources_of(kind) for kind in dict.fromkeys(resource_kind(item) for item in experiments)]
    asked = list(dict.fromkeys(item.kind for item in experiments))
    asked += ["--cuda"] if any(item.gpus_per_node for item in resources) else []
    command = f"{cluster.python_command()} -m launch.environment {shlex.join(asked)}"
    script = "\n".join([*cluster.setup_lines(resources[0], code), command])
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
        print_line(f"warning: what jobs import was not tried on this machine: {' '.join(str(error).split())[:200]}")
        return
    words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == ENVIRONMENT_EXIT_CODE:
        raise UnusableEnvironmentError(f"jobs could not run: {words[-1]}; nothing was submitted")
    if done.returncode:
        python = cluster.python_command()
        print_line(f"warning: what jobs import could not be tried on this machine ({words[-1]}): {python}")
        return
    passed.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(passed, {"key": key, "time": time.time(), "command": command})


def _key(script: str, cluster: ClusterSettings) -> str:
    """Return a hash of everything that the result depends on.

    That is the script, the packages installed here, and the files that the Python command names.
    """
    installed = sorted(f"{item.name} {item.version}" for item in importlib.metadata.distributions())
    files = [Path(word) for word in shlex.split(cluster.python_command()) if Path(word).is_file()]
    stats = [f"{file} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join([script, *installed, *stats]).encode()).hexdigest()
