"""Metadata of a run for MLflow: parameters, tags, status, description.

They are plain dicts and strings from files; only client.py uses MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from crisscross.config.datasets import DATASETS, VALIDATION_NAMES
from crisscross.run.identity import group_hash, scientific
from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from crisscross.utils.files import read_json
from crisscross.utils.plain import canonical_json
from crisscross.utils.redact import mask_passwords

STATUS_OF_STATE = {
    RunState.NOT_STARTED: "SCHEDULED",
    RunState.QUEUED: "SCHEDULED",
    RunState.WAITING: "SCHEDULED",
    RunState.RUNNING: "RUNNING",
    RunState.INTERRUPTED: "KILLED",
    RunState.CANCELLED: "KILLED",
    RunState.FAILED: "FAILED",
    RunState.PARENT_INTERRUPTED: "SCHEDULED",
    RunState.PARENT_CANCELLED: "FAILED",
    RunState.PARENT_FAILED: "FAILED",
    RunState.DONE: "FINISHED",
}
"""MLflow's status of each state."""

PACKAGES = ("torch", "mlflow")
"""Packages whose versions are tags; the artifact environment.json has all."""

WHOLE_BLOCKS = ("data.toy", "optim.larc", "views.audio.transform", "views.video.transform")
"""Parts of a config that are one parameter each: their many numbers are rarely compared one by one."""


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that can change a result, as flat MLflow parameters.

    Such as ``{"views.video.num_frames": "8", ...}``. MLflow allows no change of a parameter. Execution settings may
    change at each start of a run, so they are only in the artifact ``config.yaml``. Strings stay as they are, other
    values and the ``WHOLE_BLOCKS`` are JSON (``null``, ``[1, 2]``). Passwords in URIs are masked.
    """
    return _flat(scientific(config))


def parent_params(run: RunDirectory) -> dict[str, str]:
    """Return method and relaxation of the pretraining that an evaluation evaluates.

    They are parameters because MLflow's charts have no axes for tags.
    """
    params: dict[str, str] = {}
    for parent in run.parents:
        if (parent.path / "run.json").is_file():
            config = parent.config
            params.update(parameters({key: config[key] for key in ("method", "relaxation") if key in config}))
    if run.kind == "downstream" and not run.parents:
        params["relaxation"] = _source_of(run.config)
    return params


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value and name not in WHOLE_BLOCKS:
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = mask_passwords(value if isinstance(value, str) else json.dumps(value))
    return flat


def tags(run: RunDirectory, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags by which MLflow's runs are searched, filtered and grouped.

    An evaluation has the method, relaxation, seed and data of the pretraining that it evaluates.
    """
    about = run.about
    ran_on = read_json(run.path / "environment.json") or {}
    git = ran_on.get("git") or about["git"]
    parents = [parent for parent in run.parents if (parent.path / "run.json").is_file()]
    pretraining = config if about["kind"] == "pretrain" else parents[0].config if parents else None
    found = {
        "mlflow.runName": about["label"],
        "mlflow.note.content": description(run, config, pretraining=pretraining),
        "mlflow.source.name": _scripts(about)[0],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "crisscross.identity": about["identity"],
        "crisscross.parent_identity": ",".join(parent.identity for parent in parents),
        "kind": about["kind"],
        "study": ",".join(sorted({entry["study"] for entry in about["studies"].values()})),
        "scale": config["scale"]["name"],
        "seed": (pretraining or config)["seed"],
        "method": pretraining["method"]["name"] if pretraining else _source_of(config),
        "git_commit": git.get("commit"),
        "git_dirty": json.dumps(git["dirty"]) if "dirty" in git else None,
        "code_snapshot": git.get("snapshot"),
        "slurm_job_id": ran_on.get("slurm", {}).get("SLURM_JOB_ID"),
        **_versions(ran_on),
    }
    if pretraining:
        found["relaxation"] = pretraining["relaxation"]
        found["pretrain_data"] = pretraining["data"]["name"]
        found["crisscross.pretrain_family"] = group_hash(pretraining, axes=("seed", "relaxation"))[:8]
    if about["kind"] == "downstream":
        found["downstream_data"] = _evaluated_data(config["data"])
        found["protocol"] = config["downstream"]["name"]
        found["crisscross.family"] = group_hash(config, axes=("seed", "weights.fingerprint"))[:8]
    found.update({f"study.{name}": canonical_json(entry.get("point", {})) for name, entry in about["studies"].items()})
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def _evaluated_data(data: Mapping[str, Any]) -> str:
    """Return a dataset's name, marked ``(val)`` if it is evaluated on its validation split.

    Kinetics has no other labeled split than ``val``, which is its test split here.
    """
    official, split = DATASETS.get(str(data.get("kind"))), data.get("test_split")
    is_validation = split in VALIDATION_NAMES and not (official and split == official.splits[1])
    return f"{data['name']} ({split})" if is_validation else data["name"]


def table_name(table: int | str) -> str:
    """Return the name of a table.

    Examples are ``Table 3``, ``Tables 4 and 5``, ``The table of retrieval``.
    """
    if isinstance(table, int):
        return f"Table {table}"
    return f"Tables {table}" if table[:1].isdigit() else f"The table of {table}"


def script_of(study: Mapping[str, Any]) -> str:
    """Return the script that launches a study.

    Args:
        study: the study's record, or the study's entry in a run's ``run.json``.
    """
    return study.get("script") or f"launch/sweep_{study['study']}.py"


def _source_of(config: Mapping[str, Any]) -> str:
    weights = config["weights"]
    return "released" if weights["video"] or weights["audio"] else "untrained"


def description(run: RunDirectory, config: Mapping[str, Any], *, pretraining: Mapping[str, Any] | None) -> str:
    """Return the text at the top of the run's page.

    It names the run, its row in a table, and the command that runs it again.
    """
    about = run.about
    data, scale = config["data"]["name"], config["scale"]["name"]
    if about["kind"] == "pretrain":
        what = (
            f"Pretraining with {config['method']['name']}, temporal relaxation `{config['relaxation']}`, "
            f"on {data} ({scale} scale, seed {config['seed']})."
        )
    else:
        source = f"the pretraining {run.parents[0].label}" if pretraining else f"{_source_of(config)} backbones"
        if pretraining and config["weights"].get("epoch") is not None:
            source += f" after epoch {config['weights']['epoch']}"
        what = f"Evaluation ({config['downstream']['name']}) of {source} on {data} ({scale} scale)."
    where = [
        f"{table_name(entry['table'])}: {_place_in(entry, pretraining)}"
        f" (study {entry['study']}, {entry['fingerprint']})."
        for _, entry in sorted(about["studies"].items())
    ]
    folder = f"{config['runs_root']}/{about['kind']}/{run.path.name}"
    commands = [f"python -m launch.job {folder}", *(_scripts(about) if about["studies"] else [])]
    again = " or ".join(f"`uv run {command}`" for command in commands)
    # MLflow shows four lines, the rest on a click.
    lines = [what, "", f"Run it again: {again}", "", *(f"- {line}" for line in where)]
    return "\n".join([*lines, "", "Its config is the artifact `config.yaml`."])


def _scripts(about: Mapping[str, Any]) -> list[str]:
    """Return the scripts of a run's studies, or of a single experiment."""
    scripts = sorted({script_of(entry) for entry in about["studies"].values()})
    return scripts or [f"experiments/{about['kind']}.py"]


def _place_in(entry: Mapping[str, Any], pretraining: Mapping[str, Any] | None) -> str:
    """Return a run's place in a study's table.

    The place is the run's value on each axis.
    """
    if not pretraining:
        return "the untrained floor"
    point = entry.get("point", {})
    return ", ".join(f"{axis} `{value}`" for axis, value in point.items()) or f"{pretraining['method']['name']}"


def _versions(ran_on: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags ``env.*`` of an ``environment.json``, which may be empty."""
    if not ran_on:
        return {}
    installed = {name.lower(): version for name, version in ran_on["packages"].items()}
    return {
        "env.host": ran_on["host"],
        **{f"env.{package}": installed.get(package, "not installed") for package in PACKAGES},
    }


def environment() -> dict[str, str]:
    """Return tags of this process: versions, machine, user.

    It imports none of the packages. The tags hold until the experiment starts and writes its own ``environment.json``.
    """
    packages = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    found = _versions({"host": platform.node(), "packages": packages})
    try:
        found["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        found["mlflow.user"] = "unknown"
    return found


DIGEST_LENGTH = 36  # MLflow's limit


@dataclass(frozen=True)
class Dataset:
    """A dataset and its use in a run.

    MLflow keeps one dataset a name and digest, with its first source; only the context is per run.

    Attributes:
        name: such as ``ucf101``.
        digest: of its manifest, shortened.
        source: JSON: kind and path of the dataset.
        context: use and clips: ``pretraining: train``, ``evaluation: train, test, fold 1``.
    """

    name: str
    digest: str
    source: str
    context: str


def dataset(kind: str, config: Mapping[str, Any]) -> Dataset:
    """Return the dataset of an experiment.

    Args:
        kind: ``pretrain`` or ``downstream``.
        config: of the experiment.
    """
    data = config["data"]
    splits = [data.get(key) for key in ("train_split", "test_split")][: 1 if kind == "pretrain" else 2]
    folds = [f"fold {fold}" for fold in data.get("folds") or []] if kind == "downstream" else []
    place = {"kind": data.get("kind"), "path": mask_passwords(data.get("csv") or data.get("root") or "")}
    what = "pretraining" if kind == "pretrain" else "evaluation"
    return Dataset(
        name=data["name"],
        digest=str(data["fingerprint"])[:DIGEST_LENGTH],
        source=json.dumps(place),
        context=f"{what}: {', '.join(filter(None, [*splits, *folds]))}",
    )
