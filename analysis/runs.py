"""Runs of a study as tidy frames with one row per experiment."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.studies import STUDIES
from crisscross.run.state import RunState
from crisscross.tracking.address import TrackingError
from crisscross.tracking.query import RunColumns, experiment_tags, study_runs
from crisscross.utils.redact import mask_passwords

if TYPE_CHECKING:  # for the annotations; see tidy
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
"""Columns of the frame, and the MLflow tag of each; a missing tag is an empty string."""

PARAMS = (
    *("downstream.name", "downstream.modalities", "downstream.ranks", "downstream.frames", "downstream.distance"),
    *("downstream.select", "data.folds", "weights.epoch", "training.epochs", "views.evaluation_clips"),
    *("model.video.torchvision", "model.video.depth", "model.video.width"),
)
"""The MLflow params that the columns come from."""

METRICS = "eval/"
"""Prefix of the metrics that have a column."""

BY_TEST = ", C by the test split"
"""Suffix of ``protocol`` in the frame if ``downstream.select=test``."""

BACKBONES = {
    "R(2+1)D-18 of width 64": "R(2+1)D-18, 15.4 M",
    "r2plus1d_18": "R(2+1)D-18, 31.5 M",
    "r3d_18": "3D-ResNet18, 33.4 M",
}
"""The video networks of Table 5 (tests/models counts their parameters)."""


class NoRunsError(LookupError):
    """No such runs; the message is one line with the remedy."""


@dataclass(frozen=True)
class StudyRuns:
    """The runs of one variant of a study.

    Attributes:
        study: its name.
        study_hash: 8 digits that identify the variant.
        evaluations: one row per downstream run; see ``tidy`` for the columns.
        pretrainings: one row per pretraining, same columns.
        others: hashes of the other variants in the same store, newest first.
    """

    study: str
    study_hash: str
    evaluations: pd.DataFrame
    pretrainings: pd.DataFrame
    others: tuple[str, ...]


def read_study(uri: str, *, experiment: str, study: str, study_hash: str | None = None) -> StudyRuns:
    """Read one variant of a study.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the MLflow experiment.
        study: such as ``"relaxation"``.
        study_hash: which variant; None = the one launched last.

    Raises:
        NoRunsError: if the store has no such study or variant, or it has no runs.
        TrackingError: if the store does not exist or cannot be reached.
    """
    tags = experiment_tags(uri=uri, experiment=experiment)
    variants = variants_of(study, tags)
    if not variants:
        raise NoRunsError(f"{mask_passwords(uri)} has no runs of the study {study}")
    if study_hash is None:
        latest = tags.get(f"study.{study}.latest")
        study_hash = latest if latest in variants else variants[0]
    if study_hash not in variants:
        raise NoRunsError(f"the study {study} has no variant {study_hash}: there are {', '.join(variants)}")
    wanted = RunColumns((*COLUMNS_OF_TAGS.values(), f"study.{study}.{study_hash}"), PARAMS, METRICS)
    runs = study_runs(f"{study}.{study_hash}", wanted=wanted, uri=uri, experiment=experiment)
    if not runs:
        raise NoRunsError(f"{mask_passwords(uri)} has no runs of the study {study}, variant {study_hash}")
    frame = tidy(runs, study=f"{study}.{study_hash}")
    return StudyRuns(
        study=study,
        study_hash=study_hash,
        evaluations=frame[frame["kind"] == "downstream"].reset_index(drop=True),
        pretrainings=frame[frame["kind"] == "pretrain"].reset_index(drop=True),
        others=tuple(variant for variant in variants if variant != study_hash),
    )


def read_or_explain(uri: str, *, experiment: str, study: str, study_hash: str | None = None) -> StudyRuns:
    """Read one variant of a study; errors have the remedy.

    Args:
        uri: see ``read_study``.
        experiment: see ``read_study``.
        study: see ``read_study``.
        study_hash: see ``read_study``.

    Raises:
        NoRunsError: if there are no runs, or the store cannot be read.
    """
    try:
        return read_study(uri, experiment=experiment, study=study, study_hash=study_hash)
    except (NoRunsError, TrackingError) as error:
        is_away = uri.startswith("http") and isinstance(error, TrackingError)
        hint = "is the server up?" if is_away else f"`{STUDIES[study].command}` runs the study"
        raise NoRunsError(f"{error}; {hint}") from error
    except ValueError as error:
        raise NoRunsError(str(error)) from error


def variants_of(study: str, tags: Mapping[str, str]) -> list[str]:
    """Return the hashes of a study's variants, last launched first."""
    pattern = re.compile(rf"study\.{re.escape(study)}\.([0-9a-f]{{8}})")
    found = {match[1]: float(tags[key]) for key in tags if (match := pattern.fullmatch(key))}
    return sorted(found, key=lambda study_hash: (-found[study_hash], study_hash))


def tidy(runs: Iterable[Mapping[str, Any]], *, study: str = "") -> pd.DataFrame:
    """Return one row per experiment.

    Several runs may have the same identity, for example after a run directory was deleted and the experiment run
    again. The frame keeps one of them: finished before unfinished, then the newest.

    Args:
        runs: from ``crisscross.tracking.query.study_runs``.
        study: ``<study>.<study_hash>``, the study of ``point``.

    Returns:
        A frame with the columns of ``COLUMNS_OF_TAGS`` (strings; ``seed`` is an integer), ``run_id``, ``status``,
        ``start_time_ms``, ``modalities`` (tuple of ``"v"``, ``"a"``, ``"av"``), ``folds`` and ``ranks`` (tuples of
        integers), ``frames`` (of a fine-tuning; a string), ``backbone`` (the video network), ``epoch`` (a string, empty
        for the end of the pretraining), ``epochs`` (of a pretraining; a string), ``point`` (JSON: the values on the
        axes of the study) and one column per metric (NaN if missing). The order of the rows does not depend on the
        order of the runs.
    """
    import pandas as pd  # takes half a second, which --help and a study without runs do not need

    rows = [
        {
            "run_id": run["run_id"],
            "status": run["status"],
            "start_time_ms": run["start_time_ms"],
            **{column: run["tags"].get(tag, "") for column, tag in COLUMNS_OF_TAGS.items()},
            **_param_columns(run["params"]),
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


def _param_columns(params: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns that come from the params of a run."""
    protocol = params.get("downstream.name", "")
    only = '["v"]' if protocol == "finetune" else "[]"
    found = {
        "modalities": _json_tuple(params.get("downstream.modalities", only)),
        "folds": _json_tuple(params.get("data.folds", "[]")),
        "ranks": _json_tuple(params.get("downstream.ranks", "[]")),
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
def _json_tuple(text: str) -> tuple[Any, ...]:
    return tuple(json.loads(text))


def backbone_of(params: Mapping[str, str]) -> str:
    """Return the video network's name in Table 5: ``R(2+1)D-18, 15.4 M``."""
    if "model.video.torchvision" in params:
        return BACKBONES.get(params["model.video.torchvision"], params["model.video.torchvision"])
    if "model.video.depth" not in params:
        return ""
    found = f"R(2+1)D-{params['model.video.depth']} of width {params.get('model.video.width', '64')}"
    return BACKBONES.get(found, found)


def reason_missing(evaluation: Mapping[str, Any] | None, pretraining: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return why a number is missing.

    Args:
        evaluation: the row of the evaluation; None if there is no run.
        pretraining: the row of its pretraining; None if there is no run or the evaluation needs none.

    Returns:
        A few words for a cell, and the error message of a failed run, else an empty string.
    """
    known = evaluation if evaluation is not None else {}
    status = known.get("status")
    if status == "RUNNING":
        return f"running {known['progress']}".strip(), ""
    if status == "FINISHED":
        return "not measured", ""
    if pretraining is not None:
        if pretraining["status"] == "FAILED":
            return RunState.PARENT_FAILED, pretraining["error"]
        if pretraining["status"] == "KILLED":
            return f"parent {pretraining['state'] or RunState.INTERRUPTED}", ""
        if pretraining["status"] == "RUNNING":
            return f"pretraining {pretraining['progress'] or RunState.RUNNING}", ""
    if status == "FAILED":
        return RunState.FAILED, known["error"]
    if status == "KILLED":
        return known["state"] or RunState.INTERRUPTED, ""
    waits = status == "SCHEDULED" or (pretraining is not None and pretraining["status"] == "SCHEDULED")
    return (RunState.QUEUED if waits else "not run"), ""
