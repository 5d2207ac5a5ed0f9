"""Several folds of a fine-tuning as one command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from crisscross.utils.files import read_json
from crisscross.utils.signals import SHUTDOWN
from launch.job.folds import require_one_job_a_fold, run_folds
from launch.run_single import run_in_process
from tests.data.miniatures import data_overrides, make_miniature
from tests.support import TINY_FINETUNING, tiny_config


def _config(*folds: int, protocol: str = "finetune") -> dict[str, Any]:
    return {"downstream": {"name": protocol}, "data": {"name": "ucf101", "folds": [*folds]}}


def _run(config: Mapping[str, Any], codes: Mapping[int, int] | None = None) -> tuple[int, list[list[int]], list[str]]:
    """Run folds whose top-1 is a tenth of their number; return exit code, folds of each run, printed lines."""
    ran: list[list[int]] = []
    printed: list[str] = []

    def run(part: dict[str, Any]) -> tuple[int, dict[str, float]]:
        (fold,) = part["data"]["folds"] if len(part["data"]["folds"]) == 1 else (0,)
        ran.append(part["data"]["folds"])
        code = (codes or {}).get(fold, 0)
        metrics = {"eval/top1_v": fold / 10, f"eval/top1_v_fold{fold}": fold / 10, "loss/total": 1.0}
        return code, {} if code else metrics

    return run_folds(config, run, print_line=printed.append), ran, printed


def test_each_fold_is_run_and_the_mean_is_of_all() -> None:
    code, ran, printed = _run(_config(1, 3, 5))
    assert (code, ran) == (0, [[1], [3], [5]])
    assert printed == ["mean of folds 1, 3, 5:", "  eval/top1_v                  0.3 (0.1, 0.3, 0.5)"]


@pytest.mark.parametrize("config", [_config(2), _config(), _config(1, 2, protocol="svm")])
def test_what_is_one_experiment_stays_one(config: dict[str, Any]) -> None:
    assert _run(config) == (0, [config["data"]["folds"]], [])


def test_a_fold_that_fails_leaves_the_others_their_turn() -> None:
    code, ran, printed = _run(_config(1, 2, 3), {1: 75, 2: 1})
    assert (code, ran) == (1, [[1], [2], [3]])
    assert printed == ["no mean: 1 of 3 folds are done: 3; the same command resumes"]


def test_a_wrong_setting_is_reported_once() -> None:
    assert _run(_config(1, 2, 3), {1: 2}) == (2, [[1]], [])


def test_an_interruption_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SHUTDOWN, "signal_name", "SIGINT")
    for codes in ({1: 75}, {}):  # in the middle, or as the first ended
        code, ran, printed = _run(_config(1, 2, 3), codes)
        assert (code, ran) == (75, [[1]])
        done = "0 of 3 folds are done" if codes else "1 of 3 folds are done: 1"
        assert printed == [f"no mean: {done}; the same command resumes"]


def test_on_slurm_each_fold_is_a_job() -> None:
    require_one_job_a_fold(_config(1))
    require_one_job_a_fold(_config(1, 2, protocol="svm"))
    with pytest.raises(
        ValueError,
        match=r"^data.folds=\[1, 3\]: fine-tuning on Slurm takes one fold a job: 'data.folds=\[1\],\[3\]'$",
    ):
        require_one_job_a_fold(_config(1, 3))


def test_each_fold_and_the_mean_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SHUTDOWN, "install", lambda: None)  # signals are the tests' own
    root = make_miniature("ucf101", tmp_path / "ucf101")
    chosen = ("downstream.training.epochs=1", "downstream.optim.groups.base.initial=0.01", "downstream.head.dropout=0")
    overrides = (*data_overrides("ucf101", root), *TINY_FINETUNING, *chosen, "data.folds=[1,3]")
    run_in_process("downstream", tiny_config("downstream", tmp_path, *overrides))
    printed = capsys.readouterr().out
    results = re.findall(r"^result: (runs/downstream/untrained-s0-finetune-ucf101-fold(\d)\S+)$", printed, re.M)
    assert [fold for _, fold in results] == ["1", "3"]
    top1 = [read_json(tmp_path / path)["metrics"]["eval/top1_v"] for path, _ in results]
    mean = re.search(r"^mean of folds 1, 3:\n  eval/top1_v +(\S+) \((\S+), (\S+)\)$", printed, re.M)
    assert [float(value) for value in mean.groups()] == pytest.approx([sum(top1) / 2, *top1], abs=1e-3)
