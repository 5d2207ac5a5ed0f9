"""From MLflow to tidy frames: one row a run. The only file of the analysis that asks MLflow (through tracking.py)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.studies import STUDIES
from crisscross.tracking.client import TrackingError
from crisscross.tracking.query import RunColumns, experiment_tags, study_runs
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:
    import pandas as pd

COLUMNS_OF_TAGS = {
    "kind": "kind",
    "method": "method",
    "relaxation": "relaxation",
    "seed": "seed",
    "pretrain_data": "pretrain_data",
    "downstream_data": "downstream_data",
    "protocol": "protocol",
    "scale": "scale",
    "state": "crisscross.state",
    "progress": "crisscross.progress",
    "error": "crisscross.error",
    "identity": "crisscross.identity",
    "parent_identity": "crisscross.parent_identity",
    "parent_run_id": "mlflow.parentRunId",
    "family": "crisscross.family",
    "pretrain_family": "crisscross.pretrain_family",
    "git_commit": "git_commit",
}
"""Columns of the frame and the tags of a run that they hold; a tag that a run has not is an empty string."""

PARAMS = (
    *("downstream.name", "downstream.modalities", "downstream.ranks", "downstream.frames", "downstream.distance"),
    *("downstream.select", "data.folds", "weights.epoch", "training.epochs", "views.evaluation_clips"),
    *("model.video.torchvision", "model.video.depth", "model.video.width"),
)
"""The parameters that columns are made of."""

METRICS = "eval/"
"""What the names of the metrics begin with that have a column."""

BY_TEST = ", C by the test split"
"""What ``protocol`` of the frame ends in where ``downstream.select=test``."""

BACKBONES = {
    "R(2+1)D-18 of width 64": "R(2+1)D-18, 15.4 M",
    "r2plus1d_18": "R(2+1)D-18, 31.5 M",
    "r3d_18": "3D-ResNet18, 33.4 M",
}
"""The video networks of Table 5 (tests/models counts their parameters)."""


class NoRunsError(LookupError):
    """The record has nothing to show; the message is one line that says what to do."""


@dataclass(frozen=True)
class StudyRuns:
    """The runs of one variant of a study.

    Attributes:
        study: its name.
        fingerprint: which variant.
        evaluations: one row a downstream run; see ``tidy`` for the columns.
        pretrainings: one row a pretraining, same columns.
        others: fingerprints of the other variants in the same store, newest first.
    """

    study: str
    fingerprint: str
    evaluations: pd.DataFrame
    pretrainings: pd.DataFrame
    others: tuple[str, ...]


def read_study(uri: str, *, experiment: str, study: str, fingerprint: str | None = None) -> StudyRuns:
    """Read one variant of a study.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: such as ``"relaxation"``.
        fingerprint: which variant; None = the one launched last.

    Raises:
        NoRunsError: when there is no such study or variant, or it has no runs.
        TrackingError: when there is no such store or it cannot be reached.
    """
    tags = experiment_tags(uri=uri, experiment=experiment)
    variants = variants_of(study, tags)
    if not variants:
        raise NoRunsError(f"{mask_passwords(uri)} has no runs of the study {study}")
    if fingerprint is None:
        latest = tags.get(f"study.{study}.latest")
        fingerprint = latest if latest in variants else variants[0]
    if fingerprint not in variants:
        raise NoRunsError(f"the study {study} has no variant {fingerprint}: there are {', '.join(variants)}")
    wanted = RunColumns((*COLUMNS_OF_TAGS.values(), f"study.{study}.{fingerprint}"), PARAMS, METRICS)
    runs = study_runs(f"{study}.{fingerprint}", wanted=wanted, uri=uri, experiment=experiment)
    if not runs:
        raise NoRunsError(f"{mask_passwords(uri)} has no runs of the study {study}, variant {fingerprint}")
    frame = tidy(runs, study=f"{study}.{fingerprint}")
    return StudyRuns(
        study=study,
        fingerprint=fingerprint,
        evaluations=frame[frame["kind"] == "downstream"].reset_index(drop=True),
        pretrainings=frame[frame["kind"] == "pretrain"].reset_index(drop=True),
        others=tuple(variant for variant in variants if variant != fingerprint),
    )


def read_or_explain(uri: str, *, experiment: str, study: str, fingerprint: str | None = None) -> StudyRuns:
    """Read one variant of a study, or say in one line why not and what helps; see ``read_study``.

    Raises:
        NoRunsError: there are no runs, or the store cannot be read.
    """
    try:
        return read_study(uri, experiment=experiment, study=study, fingerprint=fingerprint)
    except (NoRunsError, TrackingError) as error:
        is_away = uri.startswith("http") and isinstance(error, TrackingError)
        hint = "is the server up?" if is_away else f"`{STUDIES[study].command}` runs the study"
        raise NoRunsError(f"{error}; {hint}") from error
    except ValueError as error:
        raise NoRunsError(str(error)) from error


def variants_of(study: str, tags: Mapping[str, str]) -> list[str]:
    """Return the fingerprints of a study's variants from the experiment's tags, launched last first."""
    pattern = re.compile(rf"study\.{re.escape(study)}\.([0-9a-f]{{8}})")
    found = {match[1]: float(tags[key]) for key in tags if (match := pattern.fullmatch(key))}
    return sorted(found, key=lambda fingerprint: (-found[fingerprint], fingerprint))


def tidy(runs: Iterable[Mapping[str, Any]], *, study: str = "") -> pd.DataFrame:
    """Return one row an experiment.

    Where several runs have the same identity (a run directory was deleted and the experiment done again, or two
    people did it), one is kept: a finished one before others, the newest of those.

    Args:
        runs: as ``crisscross.tracking.query.study_runs`` returns them.
        study: ``<study>.<fingerprint>``, whose axes ``point`` is about.

    Returns:
        A frame with the columns of ``COLUMNS_OF_TAGS`` (strings; ``seed`` is an integer), ``run_id``, ``status``,
        ``start_time_ms``, ``modalities`` (tuple of ``"v"``, ``"a"``, ``"av"``), ``folds`` and ``ranks`` (tuples of
        integers), ``frames`` (of a fine-tuning; a string), ``backbone`` (a video network, by its settings), ``epoch``
        (a string, empty for the end of the pretraining), ``epochs`` (of a pretraining; a string), ``point`` (JSON) and
        one column a metric (NaN where a run has it not), sorted so that the order in which runs were recorded leaves no
        trace.
    """
    import pandas as pd

    rows = [
        {
            "run_id": run["run_id"],
            "status": run["status"],
            "start_time_ms": run["start_time_ms"],
            **{column: run["tags"].get(tag, "") for column, tag in COLUMNS_OF_TAGS.items()},
            **_of_params(run["params"]),
            "experiment_id": run.get("experiment_id", ""),
            "point": run["tags"].get(f"study.{study}", "{}"),
            **run["metrics"],
        }
        for run in runs
    ]
    frame = pd.DataFrame(rows).astype({"seed": int})
    frame["_unfinished"] = frame["status"] != "FINISHED"
    frame = frame.sort_values(["_unfinished", "start_time_ms", "run_id"], ascending=[True, False, True])
    frame = frame.drop_duplicates("identity").drop(columns="_unfinished")
    order = ["kind", "method", "relaxation", "seed", "downstream_data", "identity"]
    return frame.sort_values(order).reset_index(drop=True)


def _of_params(params: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns of a run that come from its parameters."""
    protocol = params.get("downstream.name", "")
    only = '["v"]' if protocol == "finetune" else "[]"
    found = {
        "modalities": _listed(params.get("downstream.modalities", only)),
        "folds": _listed(params.get("data.folds", "[]")),
        "ranks": _listed(params.get("downstream.ranks", "[]")),
        "frames": params.get("downstream.frames", "") if protocol == "finetune" else "",
        "backbone": backbone_of(params),
        "epoch": params.get("weights.epoch", "null").replace("null", ""),
        "epochs": params.get("training.epochs", ""),
        "segments": params.get("views.evaluation_clips", ""),
        "distance": params.get("downstream.distance", ""),
    }
    if params.get("downstream.select") == "test":
        found["protocol"] = protocol + BY_TEST
    return found


@functools.cache
def _listed(text: str) -> tuple[Any, ...]:
    return tuple(json.loads(text))


def backbone_of(params: Mapping[str, str]) -> str:
    """Return what the video network is, in the words of Table 5: ``R(2+1)D-18, 15.4 M``."""
    if "model.video.torchvision" in params:
        return BACKBONES.get(params["model.video.torchvision"], params["model.video.torchvision"])
    if "model.video.depth" not in params:
        return ""
    found = f"R(2+1)D-{params['model.video.depth']} of width {params.get('model.video.width', '64')}"
    return BACKBONES.get(found, found)


def reason_missing(evaluation: Mapping[str, Any] | None, pretraining: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return why there is no number: a few words for a cell, and the error behind it, if there was one.

    Args:
        evaluation: the row of the evaluation, None when there is none.
        pretraining: the row of its pretraining, None when there is none or it needs none.
    """
    known = evaluation if evaluation is not None else {}
    status = known.get("status")
    if status == "RUNNING":
        return f"running {known['progress']}".strip(), ""
    if status == "FINISHED":
        return "not measured", ""
    if pretraining is not None:
        if pretraining["status"] == "FAILED":
            return "parent failed", pretraining["error"]
        if pretraining["status"] == "KILLED":
            return f"parent {pretraining['state'] or 'interrupted'}", ""
        if pretraining["status"] == "RUNNING":
            return f"pretraining {pretraining['progress'] or 'running'}", ""
    if status == "FAILED":
        return "failed", known["error"]
    if status == "KILLED":
        return known["state"] or "interrupted", ""
    waits = status == "SCHEDULED" or (pretraining is not None and pretraining["status"] == "SCHEDULED")
    return ("queued" if waits else "not run"), ""
