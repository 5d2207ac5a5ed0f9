"""Settings of a Slurm cluster: the node ``cluster`` of ``experiments/conf/hydra/launcher/*.yaml``."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from crisscross.config.base import Settings
from crisscross.config.experiment import trains
from launch.study.graph import Experiment

Count = Annotated[int, Field(gt=0)]
RESOURCE_KINDS = ("pretrain", "downstream", "finetune", "cpu")
"""Keys of ``cluster.resources``: pretrainings, evaluations, fine-tunings, and jobs without a GPU."""

_SHARED = ("partition", "account", "qos", "constraint", "exclude")
"""Keys with a default for all kinds of jobs."""


class Resources(Settings):
    """Resources of one kind of job.

    Null is the default of the cluster, or of the site.
    """

    nodes: Count = 1
    tasks_per_node: Count = 1
    gpus_per_node: Count | None = None
    cpus_per_task: Count | None = None
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    timeout_min: Count
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None

    @property
    def num_tasks(self) -> int:
        """Processes of a job."""
        return self.nodes * self.tasks_per_node


class ResourcesByKind(Settings):
    """Resources of each kind of job."""

    pretrain: Resources
    downstream: Resources
    finetune: Resources
    cpu: Resources


class ClusterSettings(Settings):
    """A cluster. ``experiments/conf/hydra/launcher/template.yaml`` explains each key."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    array_parallelism: Count
    signal_seconds: Annotated[int, Field(ge=10)]
    setup: list[str]
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | int | float]
    python: str | list[str] | None
    scratch: str | None
    local_disk: str | None
    additional_parameters: dict[str, str | int | float | bool]
    resources: ResourcesByKind

    def resources_of(self, kind: str) -> Resources:
        """Return the resources of a kind of job.

        The defaults of the cluster are filled in.
        """
        asked: Resources = getattr(self.resources, kind)
        return asked.model_copy(update={name: getattr(asked, name) or getattr(self, name) for name in _SHARED})

    def python_command(self) -> str:
        """Return the shell-quoted command that runs Python in a job.

        Variables such as ``$SCRATCH`` stay unquoted. ``cluster.python`` is a list of words, or a line of them; a path
        with spaces is one word if it is a file.
        """
        if not self.python:
            return shlex.quote(sys.executable)
        words = self.python
        if isinstance(words, str):
            words = [words] if Path(words).is_file() else shlex.split(words)
        return " ".join(_with_variables(word) for word in words)

    def setup_lines(self, resources: Resources, code: Mapping[str, str]) -> list[str]:
        """Return the shell lines of a script before Python starts.

        Args:
            resources: resources of the job.
            code: environment variables with which Python imports the snapshot, from ``launch.slurm.snapshot``.
        """
        lines = list(self.setup)  # first, because modules change variables
        lines += [f"export {name}={shlex.quote(str(value))}" for name, value in self.environment.items()]
        for name, value in code.items():
            behind = "${PYTHONPATH:+:$PYTHONPATH}" if name == "PYTHONPATH" else ""
            lines.append(f"export {name}={shlex.quote(value)}{behind}")
        lines.append("export PYTHONUNBUFFERED=1")
        if self.local_disk is not None:
            lines.append(f'export TMPDIR="{self.local_disk}"')
        if resources.cpus_per_task is not None:  # since Slurm 22.05 srun does not inherit it from sbatch
            lines.append(f"export SRUN_CPUS_PER_TASK={resources.cpus_per_task}")
        return lines

    def place(self, runs_root: str) -> str:
        """Return the folder of run directories. A relative ``runs_root`` is below ``scratch``.

        Raises:
            ValueError: if ``scratch`` contains a variable that is not set here.
        """
        return str(self._scratch() / runs_root)

    def place_store(self, uri: str) -> str:
        """Return the URI of the MLflow store.

        A relative SQLite file is below ``scratch``.
        """
        scheme, colon, file = uri.partition(":///")
        return f"{scheme}{colon}{self._scratch() / file}" if scheme == "sqlite" and file else uri

    def _scratch(self) -> Path:
        if self.scratch is None:
            return Path.cwd()
        scratch = os.path.expandvars(Path(self.scratch).expanduser())
        unset = re.search(r"\$\{?(\w+)", scratch)
        if unset:
            raise ValueError(
                f"cluster.scratch={self.scratch}: ${unset[1]} is not set on this machine: set it, or give a folder that"
                " compute nodes can write"
            )
        return Path(scratch)


def _with_variables(word: str) -> str:
    """Quote a word for a shell; variables in it are still replaced."""
    if "$" not in word:
        return shlex.quote(word)
    return '"' + re.sub(r'(["\\`])', r"\\\1", word) + '"'


def asked_of_slurm(key: str, *, _root_: DictConfig) -> Any:
    """Resolve ``${asked_of_slurm:KEY}`` in a launcher's file: a resource of a ``--multirun`` sweep.

    All jobs of a sweep have the same resources: those of the config without the settings that it sweeps over.

    Args:
        key: a key of ``cluster.resources.KIND``.
    """
    kind = resource_kind_of(_root_.hydra.job.config_name, _root_)
    asked = _root_.cluster.resources[kind][key]
    return _root_.cluster[key] if asked is None and key in _SHARED else asked


def check_one_kind(overrides: Sequence[Override]) -> None:
    """Check that all jobs of a sweep need the same resources.

    Raises:
        ValueError: if some of them fine-tune and others do not; one line.
    """
    for item in overrides:
        if item.key_or_group == "downstream" and item.is_sweep_override():
            chosen = {*item.sweep_string_iterator()}
            if "finetune" in chosen and len(chosen) > 1:
                raise ValueError(
                    f"{item.input_line}: the jobs of a sweep ask Slurm for the same, and fine-tuning has resources of"
                    " its own (cluster.resources.finetune): give downstream=finetune a sweep of its own"
                )


OmegaConf.register_new_resolver("asked_of_slurm", asked_of_slurm, replace=True)


def resource_kind(experiment: Experiment) -> str:
    """Return the entry of ``cluster.resources`` for an experiment."""
    return resource_kind_of(experiment.kind, experiment.config)


def resource_kind_of(kind: str, config: Mapping[str, Any]) -> str:
    """Return the entry of ``cluster.resources`` for a config."""
    if kind == "pretrain":
        return kind
    if config["execution"]["device"] == "cpu":
        return "cpu"
    return "finetune" if trains(config) else "downstream"
