"""What a run directory says about itself, in the words of MLflow: parameters, tags, status, description.

Plain dicts and strings from files; MLflow itself is only in client.py.
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

from crisscross.run.identity import family, scientific
from crisscross.run.run_dir import RunDirectory
from crisscross.utils.files import read_json
from crisscross.utils.plain import canonical_json
from crisscross.utils.redact import mask_passwords

STATUS_OF_STATE = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "cancelled": "KILLED",
    "failed": "FAILED",
    "blocked": "FAILED",
    "done": "FINISHED",
}
"""MLflow's status for what progress.json says. ``done`` counts only together with result.json."""

PACKAGES = ("torch", "mlflow")
"""Whose versions are tags; those of all packages are in the artifact environment.json."""

WHOLE_BLOCKS = ("data.toy", "optim.larc", "views.audio.transform", "views.video.transform")
"""Parts of a config that are one parameter each: twenty numbers that hardly anyone compares one by one."""


def mlflow_status(state: str) -> str:
    """Return MLflow's status for a state; one that is not known counts as failed."""
    return STATUS_OF_STATE.get(state, "FAILED")


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what can change a result as flat MLflow parameters: ``{"views.video.num_frames": "8", ...}``.

    MLflow never lets a parameter change. What only says how and where a run is executed may change whenever the run
    is started again, so it is left to the artifact ``config.yaml``. Strings stay as they are, anything else is JSON
    (``null``, ``[1, 2]``), and so are the ``WHOLE_BLOCKS``. Passwords in URIs are masked.
    """
    return _flat(scientific(config))


def parent_params(run: RunDirectory) -> dict[str, str]:
    """Return method and relaxation of what an evaluation evaluates: MLflow's charts have no axes for tags."""
    learnt: dict[str, str] = {}
    for parent in run.parents:
        if (parent.path / "run.json").is_file():
            config = parent.config
            learnt.update(parameters({key: config[key] for key in ("method", "relaxation") if key in config}))
    if run.kind == "downstream" and not run.parents:
        learnt["relaxation"] = _source_of(run.config)
    return learnt


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
    """Return what MLflow's run is searched, filtered and grouped by.

    An evaluation carries the method, relaxation, seed and data of the pretraining that it evaluates.
    """
    about = run.about
    ran_on = read_json(run.path / "environment.json") or {}
    git = ran_on.get("git") or about["git"]
    parents = [parent for parent in run.parents if (parent.path / "run.json").is_file()]
    learnt = config if about["kind"] == "pretrain" else parents[0].config if parents else None
    found = {
        "mlflow.runName": about["label"],
        "mlflow.note.content": description(run, config, learnt=learnt),
        "mlflow.source.name": _scripts(about)[0],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "crisscross.identity": about["identity"],
        "crisscross.parent_identity": ",".join(parent.identity for parent in parents),
        "kind": about["kind"],
        "study": ",".join(sorted({entry["study"] for entry in about["studies"].values()})),
        "scale": config["scale"]["name"],
        "seed": (learnt or config)["seed"],
        "method": learnt["method"]["name"] if learnt else _source_of(config),
        "git_commit": git.get("commit"),
        "git_dirty": json.dumps(git["dirty"]) if "dirty" in git else None,
        "code_snapshot": git.get("snapshot"),
        "slurm_job_id": ran_on.get("slurm", {}).get("SLURM_JOB_ID"),
        **_versions(ran_on),
    }
    if learnt:
        found["relaxation"] = learnt["relaxation"]
        found["pretrain_data"] = learnt["data"]["name"]
        found["crisscross.pretrain_family"] = family(learnt, axes=("seed", "relaxation"))[:8]
    if about["kind"] == "downstream":
        found["downstream_data"] = config["data"]["name"]
        found["protocol"] = config["downstream"]["name"]
        found["crisscross.family"] = family(config, axes=("seed", "weights.fingerprint"))[:8]
    found.update({f"study.{name}": canonical_json(entry.get("point", {})) for name, entry in about["studies"].items()})
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def table_name(table: int | str) -> str:
    """Return what a study's table is called: ``Table 3``, ``Tables 4 and 5``, ``The table of retrieval``."""
    if isinstance(table, int):
        return f"Table {table}"
    return f"Tables {table}" if table[:1].isdigit() else f"The table of {table}"


def script_of(study: Mapping[str, Any]) -> str:
    """Return the script that launches a study, from what a run or the study's own record says of it."""
    return study.get("script") or f"launch/sweep_{study['study']}.py"


def _source_of(config: Mapping[str, Any]) -> str:
    weights = config["weights"]
    return "released" if weights["video"] or weights["audio"] else "untrained"


def description(run: RunDirectory, config: Mapping[str, Any], *, learnt: Mapping[str, Any] | None) -> str:
    """Return the text on top of the run's page: what it is, its table row, how to run it again."""
    about = run.about
    data, scale = config["data"]["name"], config["scale"]["name"]
    if about["kind"] == "pretrain":
        what = (
            f"Pretraining with {config['method']['name']}, temporal relaxation `{config['relaxation']}`, "
            f"on {data} ({scale} scale, seed {config['seed']})."
        )
    else:
        source = f"the pretraining {run.parents[0].label}" if learnt else f"{_source_of(config)} backbones"
        if learnt and config["weights"].get("epoch") is not None:
            source += f" after epoch {config['weights']['epoch']}"
        what = f"Evaluation ({config['downstream']['name']}) of {source} on {data} ({scale} scale)."
    where = [
        f"{table_name(entry['table'])}: {_place_in(entry, learnt)} (study {entry['study']}, {entry['fingerprint']})."
        for _, entry in sorted(about["studies"].items())
    ]
    folder = f"{config['runs_root']}/{about['kind']}/{run.path.name}"
    commands = [f"python -m launch.job {folder}", *(_scripts(about) if about["studies"] else [])]
    again = " or ".join(f"`uv run {command}`" for command in commands)
    # MLflow shows four lines, the rest on a click.
    lines = [what, "", f"Run it again: {again}", "", *(f"- {line}" for line in where)]
    return "\n".join([*lines, "", "Its config is the artifact `config.yaml`."])


def _scripts(about: Mapping[str, Any]) -> list[str]:
    """Return what launches the studies that a run is part of; what runs a single experiment where there are none."""
    scripts = sorted({script_of(entry) for entry in about["studies"].values()})
    return scripts or [f"experiments/{about['kind']}.py"]


def _place_in(entry: Mapping[str, Any], learnt: Mapping[str, Any] | None) -> str:
    """Return where in a study's table a run is: its point on the axes, by their names."""
    if not learnt:
        return "the untrained floor"
    point = entry.get("point", {})
    return ", ".join(f"{axis} `{value}`" for axis, value in point.items()) or f"{learnt['method']['name']}"


def _versions(ran_on: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags ``env.*`` of an ``environment.json``; none where there is none."""
    if not ran_on:
        return {}
    installed = {name.lower(): version for name, version in ran_on["packages"].items()}
    return {
        "env.host": ran_on["host"],
        **{f"env.{package}": installed.get(package, "not installed") for package in PACKAGES},
    }


def environment() -> dict[str, str]:
    """Return tags that say what this process runs on: versions, machine, user. Imports none of the packages.

    They stand until the experiment has been started, which then says what *it* runs on.
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


DIGEST_LENGTH = 36  # as much of a digest as MLflow takes


@dataclass(frozen=True)
class Dataset:
    """A dataset and what a run does with it.

    MLflow has one dataset a name and digest, with the source that came first; only the context is a run's own.

    Attributes:
        name: such as ``ucf101``.
        digest: of its manifest, shortened.
        source: JSON: what kind of dataset, and where it lay.
        context: what for, and which clips: ``pretraining: train``, ``evaluation: train, test, fold 1``.
    """

    name: str
    digest: str
    source: str
    context: str


def dataset(kind: str, config: Mapping[str, Any]) -> Dataset:
    """Return the clips that an experiment is about: what they are called, where they lie, which of them.

    Args:
        kind: ``pretrain`` or ``downstream``.
        config: that of the experiment.
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
