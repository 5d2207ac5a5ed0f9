from __future__ import annotations

import pytest

from analysis.runs import reason_missing, tidy, variants_of


def recorded(
    run_id: str, *, identity: str, status: str = "FINISHED", start: int = 0, top1: float | None = None
) -> dict:
    return {
        "run_id": run_id,
        "status": status,
        "start_time_ms": start,
        "params": {"downstream.modalities": '["v"]', "data.folds": "[1, 3]"},
        "metrics": {} if top1 is None else {"eval/top1_v": top1},
        "tags": {"kind": "downstream", "seed": "0", "crisscross.identity": identity},
    }


def test_an_experiment_counts_once_however_often_it_is_in_the_record():
    runs = [
        recorded("old", identity="x", start=1, top1=0.1),
        recorded("new", identity="x", start=2, top1=0.2),
        recorded("again", identity="x", start=3, status="RUNNING"),
        recorded("other", identity="y", status="FAILED"),
    ]
    frame = tidy(runs)
    assert list(frame["run_id"]) == ["new", "other"]
    assert frame.equals(tidy(reversed(runs)))
    assert frame["seed"].dtype == int
    assert frame["modalities"][0] == ("v",)
    assert (frame["folds"][0], frame["ranks"][0], frame["frames"][0]) == ((1, 3), (), "")
    assert frame["relaxation"][0] == ""
    assert frame["eval/top1_v"].isna().tolist() == [False, True]


def test_variants_of_a_study_are_sorted_by_launch_newest_first():
    tags = {
        "study.relaxation.00000001": "10.0",
        "study.relaxation.00000002": "30.0",
        "study.relaxation.00000003": "20.0",
        "study.relaxation.latest": "00000001",
        "study.async.00000004": "40.0",
        "mlflow.note.content": "text",
    }
    assert variants_of("relaxation", tags) == ["00000002", "00000003", "00000001"]


def row(status: str, *, state: str = "", progress: str = "", error: str = "") -> dict:
    return {"status": status, "state": state, "progress": progress, "error": error}


@pytest.mark.parametrize(
    ("evaluation", "pretraining", "reason"),
    [
        (None, None, ("not run", "")),
        (None, row("FINISHED"), ("not run", "")),
        (None, row("SCHEDULED"), ("queued", "")),
        (None, row("FAILED", error="no disk"), ("parent failed", "no disk")),
        (row("SCHEDULED"), row("FINISHED"), ("queued", "")),
        (row("SCHEDULED"), row("SCHEDULED"), ("queued", "")),
        (row("SCHEDULED"), row("RUNNING", progress="41 %"), ("pretraining 41 %", "")),
        (row("SCHEDULED"), row("KILLED", state="interrupted"), ("parent interrupted", "")),
        (row("SCHEDULED"), row("FAILED", error="no disk"), ("parent failed", "no disk")),
        (row("FAILED", state="blocked"), row("FAILED", error="no disk"), ("parent failed", "no disk")),
        (row("FAILED", error="bad clip"), row("FINISHED"), ("failed", "bad clip")),
        (row("RUNNING", progress="41 %"), row("FINISHED"), ("running 41 %", "")),
        (row("RUNNING"), None, ("running", "")),
        (row("KILLED", state="interrupted"), row("FINISHED"), ("interrupted", "")),
        (row("KILLED", state="cancelled"), row("FINISHED"), ("cancelled", "")),
        (row("FINISHED"), row("FINISHED"), ("not measured", "")),
    ],
)
def test_why_there_is_no_number(evaluation, pretraining, reason):
    assert reason_missing(evaluation, pretraining) == reason
