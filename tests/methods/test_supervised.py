"""Supervised pretraining: loss, clips without audio, resuming, and errors at launch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings, ModelSettings, PretrainSettings
from crisscross.evaluation.backbones import backbones_of
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.models.backbones import random_init_backbones
from crisscross.optim.schedules import build_schedules
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from launch.job.make_run import make_run
from launch.study.overrides import compose_config, hydra_configs
from launch.study.plan import make_plan
from tests.data.miniatures import data_overrides, make_miniature
from tests.methods.support import tiny_run
from tests.support import TINY_OVERRIDES, assert_same_state, final_state, history, tiny_config
from tests.training.driver import in_ranks

TINY = ModelSettings(
    video={"depth": 10, "width": 4},
    audio={"layers": (1, 1, 1, 1), "width": 4},
    projector={"hidden_dim": 16, "output_dim": 8, "num_layers": 3},
    predictor={"hidden_dim": 4},
)
ONLY_VIDEO = r"trains no audio network \(method.name=supervised\): set downstream.modalities=\[v\], or take another"
SUPERVISED = {"name": "supervised"}
TOTAL_STEPS = 9  # 3 epochs of 12 clips in batches of 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supervised")


@pytest.fixture(scope="module")
def silent(folder: Path) -> list[str]:
    """Return overrides of clips without audio."""
    make_miniature("hmdb51", folder / "hmdb51")
    one_split = ("data.folds=[]", "data.train_split=train1", "data.test_split=test1")
    return [*data_overrides("hmdb51", folder / "hmdb51"), *one_split]


def _make(folder: Path, *overrides: str, runs: str) -> RunDirectory:
    return tiny_run(folder, runs, "method=supervised", *overrides)


@pytest.fixture(scope="module")
def pretrained(folder: Path, silent: list[str]) -> RunDirectory:
    run = _make(folder, *silent, runs="whole")
    assert run_experiment(run)
    return run


def _compose(*overrides: str) -> dict[str, Any]:
    with hydra_configs():
        return compose_config("pretrain", overrides)


def test_the_loss_is_the_cross_entropy() -> None:
    method = build_method(SUPERVISED, TINY, DatasetInfo(num_clips=12, num_classes=3), seed=0)
    frames = torch.randn(1, 5, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = [2, 0, 1, 1, 0]
    views = Views(frames, None, torch.arange(5), torch.tensor(labels), epoch=0)
    scores = method.head(method.video_backbone(frames[0])).tolist()
    loss, metrics = method(views)
    total, hits = 0.0, 0
    for row, label in zip(scores, labels, strict=True):
        total += math.log(sum(math.exp(score) for score in row)) - row[label]
        hits += row.index(max(row)) == label
    assert loss.item() == pytest.approx(total / 5, abs=1e-6)
    assert metrics == {"train/top1": pytest.approx(hits / 5)}


def test_it_starts_from_the_random_init_baseline_and_has_no_audio_network() -> None:
    method = build_method(SUPERVISED, TINY, DatasetInfo(num_clips=12, num_classes=3), seed=7)
    baseline = random_init_backbones(TINY, seed=7).video_backbone.state_dict()
    assert_same_state(dict(method.video_backbone.state_dict()), dict(baseline))
    assert {name for name, _ in method.named_children()} == {"video_backbone", "head"}


def test_silent_clips_will_do_and_the_video_backbone_is_what_comes_out(pretrained: RunDirectory) -> None:
    assert pretrained.label == "supervised-none-hmdb51-s0"
    assert pretrained.result["backbones"] == {"video": "video_backbone.pt"}
    assert [path.name for path in pretrained.path.glob("*.pt")] == ["video_backbone.pt"]
    logged = {"loss/total", "train/top1", "optim/lr_base", "optim/gradient_norm", "data/fallback_fraction"}
    assert [metrics.keys() for _, metrics in history(pretrained)] == [logged] * TOTAL_STEPS


def test_stopped_in_the_middle_of_an_epoch(folder: Path, silent: list[str], pretrained: RunDirectory) -> None:
    run = _make(folder, *silent, "execution.max_steps_this_launch=5", runs="pieces")
    assert not run_experiment(run)
    assert [step for step, _ in history(run)] == [1, 2, 3, 4, 5]
    assert run_experiment(run)
    assert history(run) == history(pretrained)
    assert_same_state(final_state(run), final_state(pretrained))


@pytest.mark.slow
def test_two_processes_train_together(folder: Path, silent: list[str]) -> None:
    run = _make(folder, *silent, "execution.num_devices=2", "training.epochs=2", runs="two")
    assert in_ranks(run, 2) == [0, 0]
    assert len(history(run)) == 6


def test_an_evaluation_that_needs_audio_is_refused(folder: Path, silent: list[str], pretrained: RunDirectory) -> None:
    """An error at launch, before anything is written, and in a job of an existing run."""
    typed = [*TINY_OVERRIDES, f"data.root={folder / 'demo'}", f"runs_root={folder / 'refused'}"]
    typed.append(f"weights.run={pretrained.path}")
    with hydra_configs():
        config = compose_config("downstream", typed)
    with pytest.raises(ValueError, match=rf"^weights.run={pretrained.label} {ONLY_VIDEO}"):
        make_run("downstream", config)
    assert not (folder / "refused").exists()
    assert not (folder / "demo").exists()
    wants_sound = tiny_config("downstream", folder, *silent, "downstream.modalities=[v,a]")
    run = RunDirectory.create("downstream", wants_sound, parents=[pretrained])
    with pytest.raises(ValueError, match=rf"^weights.run={pretrained.label} {ONLY_VIDEO}"):
        backbones_of(run, parse(DownstreamSettings, run.config))


def test_an_evaluation_of_pictures_runs(folder: Path, silent: list[str], pretrained: RunDirectory) -> None:
    config = tiny_config("downstream", folder, *silent, "downstream.modalities=[v]", "downstream.c_grid=[0.1]")
    run = RunDirectory.create("downstream", config, parents=[pretrained])
    assert run_experiment(run)
    assert "eval/top1_v" in run.result["metrics"]


def _prepare(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "fingerprint": "f" * 64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["method=supervised_authors", "relaxation=none", "downstream.modalities=[v]"],
            r"^model.video=\{depth: 10, width: 16\} is not what the pretraining trains, \{torchvision: r2plus1d_18\}:"
            r" give the evaluation the model= \(or scale=\) of the pretraining$",
        ),
        (["method=supervised", "downstream.modalities=[v]"], "supervised learns from one view of a clip, .* set relax"),
        (
            ["method=supervised", "downstream.modalities=[v]", "+method.margin=1"],
            r"^method.margin is not a setting: check its spelling",
        ),
    ],
)
def test_a_study_is_refused_before_it_starts(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_plan("relaxation", arguments, prepare=_prepare)
    assert "\n" not in str(error.value)


def test_a_study_evaluates_the_pictures_alone() -> None:
    plan = make_plan("relaxation", ["method=supervised", "relaxation=none"], prepare=_prepare)
    found = {item.label: item.config["downstream"]["modalities"] for item in plan.graph if item.kind == "downstream"}
    assert found == {"supervised-none-demo-s0-svm-demo": ["v"], "untrained-s0-svm-demo": ["v", "a", "av"]}


def test_a_study_takes_another_backbone_for_pretraining_and_evaluations_alike() -> None:
    typed = ["method=supervised_authors", "relaxation=none", "model=r3d18"]
    plan = make_plan("relaxation", typed, prepare=_prepare)
    assert [item.config["model"]["video"] for item in plan.graph] == [{"torchvision": "r3d_18"}] * 3


def test_unlabeled_clips_are_refused_at_launch_and_in_the_job(folder: Path, silent: list[str], tmp_path: Path) -> None:
    for number, clip in enumerate(sorted((folder / "hmdb51").rglob("*.avi"))[:3]):
        target = tmp_path / "clips" / ("train" if number else "test") / "all" / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, target)
    typed = [item for item in TINY_OVERRIDES if not item.startswith("data.")]
    typed += [
        "data=folder",
        f"data.root={tmp_path / 'clips'}",
        f"data.manifest_root={tmp_path}",
        "data.require=[video]",
    ]
    typed += ["method=supervised", "relaxation=none", "training.global_batch_size=2", "downstream.modalities=[v]"]
    message = r"^method=supervised learns labels, the clips have 1 class: use labeled clips .*: method=crisscross$"
    with pytest.raises(ValueError, match=message):
        make_plan("relaxation", [*typed, f"runs_root={tmp_path / 'runs'}"])
    with pytest.raises(ValueError, match=message):
        build_method(SUPERVISED, TINY, DatasetInfo(num_clips=12, num_classes=1), seed=0)


def test_the_authors_rates_are_torchvisions() -> None:
    """0.001 of the rate at first, all at epoch 10, divided by 10 at 20, 30 and 40; 64 devices x 24 clips."""
    config = _compose("method=supervised_authors", "scale=paper", "data=kinetics400", "data.root=.")
    settings = parse(PretrainSettings, config)
    assert (settings.training.epochs, settings.training.global_batch_size) == (45, 64 * 24)
    assert settings.model.video.torchvision == "r2plus1d_18"
    assert (settings.views.video.num_frames, settings.relaxation) == (16, "none")
    optim = settings.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.larc.enabled) == ("sgd", 0.9, 1e-4, False)
    schedule = build_schedules(optim.groups, total_steps=450, steps_per_epoch=10)["base"]
    found = [schedule(10 * epoch) for epoch in (0, 5, 10, 19, 20, 30, 40, 44)]
    expected = [0.00064, 0.32032, 0.64, 0.64, 0.064, 0.0064, 0.00064, 0.00064]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_it_shares_everything_but_the_optimizer_with_the_others(scale: str) -> None:
    ours, others = _compose("method=supervised", f"scale={scale}"), _compose(f"scale={scale}")
    for node in ("model", "views", "training", "data"):
        assert ours[node] == others[node]
    parse(PretrainSettings, ours)
    typed = _compose("method=supervised", f"scale={scale}", f"optim={scale}")
    assert typed["optim"] == others["optim"]  # the command line has precedence
