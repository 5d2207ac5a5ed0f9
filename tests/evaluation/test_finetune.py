"""Fine-tuning: a network that learns, resuming bit for bit, and the dense test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.evaluation import complete
from crisscross.config.experiment import DownstreamSettings
from crisscross.config.views import VideoTransformSettings
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.loader import Clips, decode_segments
from crisscross.data.relaxation import even_starts
from crisscross.finetune import build_network
from crisscross.models.backbones import random_init_backbones
from crisscross.models.heads import classifier
from crisscross.models.weights_io import export_backbone, load_video_backbone
from crisscross.run.identity import weights_hash
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.training.checkpoint import checkpoint_path, load_checkpoint
from crisscross.transforms.video import eval_transform_video
from tests.data.miniatures import data_overrides, make_miniature
from tests.support import TINY_FINETUNING, assert_same_state, final_state, history, tiny_config
from tests.training.driver import FAULTS, TEST_FAULTS, in_process, in_ranks, inject_and_resume

_RATE = ("downstream.optim.groups.base.initial=0.1",)


TOTAL_STEPS = 9  # 3 epochs of 12 clips in batches of 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


def _config(folder: Path, *overrides: str) -> dict[str, Any]:
    return tiny_config("downstream", folder, *TINY_FINETUNING, *overrides)


def _make(folder: Path, *overrides: str, runs: str = "runs", **options: Any) -> RunDirectory:
    return RunDirectory.create(
        "downstream", {**_config(folder, *overrides), "runs_root": str(folder / runs)}, **options
    )


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> RunDirectory:
    run = _make(folder, "downstream.training.keep_epochs=[1,2]", runs="uninterrupted")
    assert in_process(run) == 0
    return run


def test_too_few_clips_for_a_batch_are_refused(folder: Path) -> None:
    run = _make(folder, "downstream.training.global_batch_size=16", runs="few")
    with pytest.raises(ValueError, match=r"downstream.training.global_batch_size=16 is larger than an epoch of 12"):
        run_experiment(run)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["linear"]),
        ({"dropout": 0.1}, ["dropout", "linear"]),
        ({"batch_norm": True, "dropout": 0.5}, ["norm", "dropout", "linear"]),
        ({"hidden_dim": 6, "batch_norm": True}, ["hidden", "norm", "linear"]),
    ],
)
def test_heads(options: dict[str, Any], layers: list[str]) -> None:
    head = classifier(8, 5, **options)
    assert [name for name, _ in head.named_children()] == layers
    assert head(torch.randn(4, 8)).shape == (4, 5)


def test_a_head_needs_a_class() -> None:
    with pytest.raises(ValueError, match="num_classes=0: expected at least 1"):
        classifier(8, 0)


def test_it_learns(folder: Path) -> None:
    """The demo's network learns its clips without augmentation, and generalizes a little."""
    off = ("crop", "flip", "jitter", "grayscale", "blur", "cutout")
    run = _make(
        folder,
        "data.toy.train_clips_per_class=12",
        "data.toy.test_clips_per_class=8",
        "model.video.width=16",
        "views.video.canvas_px=[40,40]",
        "views.video.transform.crop_px=32",
        *(f"views.video.transform.{name}_probability=0" for name in off),
        "downstream.frames=8",
        "views.video.num_frames=8",
        "downstream.training.global_batch_size=12",
        "downstream.training.epochs=30",
        "downstream.optim.groups.base.initial=5e-3",
        "downstream.optim.groups.base.milestone_epochs=[20,25]",
        runs="learns",
    )
    assert run_experiment(run)
    steps = history(run)
    losses = [metrics["loss/total"] for _, metrics in steps[:-1]]
    assert np.mean(losses[-9:]) < 0.5 * np.mean(losses[:9])
    assert run.result["metrics"]["eval/top1_v"] > 0.5  # chance is 1/3


def test_history_result_and_predictions_agree(uninterrupted: RunDirectory) -> None:
    result, steps = uninterrupted.result, history(uninterrupted)
    assert uninterrupted.label == "untrained-s0-finetune-demo"
    assert [step for step, _ in steps] == list(range(1, TOTAL_STEPS + 2))
    assert steps[-1][1] == {name: result["metrics"][name] for name in ("eval/top1_v", "eval/top5_v")}
    expected = {"loss/total", "train/top1", "optim/lr_base", "optim/gradient_norm", "data/fallback_fraction"}
    assert all(metrics.keys() == expected for _, metrics in steps[:-1])
    assert {metrics["data/fallback_fraction"] for _, metrics in steps[:-1]} == {0.0}
    table = pd.read_csv(uninterrupted.path / "predictions.csv")
    assert len(table) == result["num_test_clips"] == 6
    assert (table["label"] == table["predicted_v"]).mean() == pytest.approx(result["metrics"]["eval/top1_v"])
    assert table["probability_v"].ge(table["probability_of_label_v"]).all()
    assert result["artifacts"] == ["predictions.csv"]


def test_the_learning_rate_falls_at_the_milestones(uninterrupted: RunDirectory) -> None:
    rates = [metrics["optim/lr_base"] for _, metrics in history(uninterrupted)[:-1]]
    initial = uninterrupted.config["downstream"]["optim"]["groups"]["base"]["initial"]
    assert rates == pytest.approx([initial] * 3 + [0.3 * initial] * 3 + [0.09 * initial] * 3)


def _literal_scores(run: RunDirectory) -> np.ndarray:
    """Return the scores of the dense test, one segment at a time."""
    settings = parse(DownstreamSettings, run.config)
    manifest = open_manifest(settings.data)
    clips = Clips(manifest.split("test"), manifest.root)
    backbone = random_init_backbones(settings.model, seed=9).video_backbone
    network = build_network(settings, backbone, num_classes=len(manifest.classes)).eval()
    network.load_state_dict(torch.load(run.path / "classifier.pt", weights_only=True))
    scores = np.zeros((len(clips), len(manifest.classes)))
    for index in range(len(clips)):
        extent = clips.extent(index, "v")
        starts = even_starts(extent.video_start_s, extent.video_end_s, seconds=settings.views.video.seconds, num=2)
        for start in starts:
            frames, _ = decode_segments(clips.path(index), settings.views, video_starts_s=[start], audio_starts_s=[])
            aspect = torch.tensor([clips.aspects[index]])
            transform = VideoTransformSettings(**settings.views.video.transform)
            crop = eval_transform_video(torch.from_numpy(frames), aspect, transform)
            feature = network.video_backbone.feature_map(crop).amax(dim=(2, 3, 4))
            scores[index] += network.head(feature).softmax(dim=1)[0].detach().double().numpy() / len(starts)
    return scores


def test_the_dense_test_equals_a_literal_one(uninterrupted: RunDirectory) -> None:
    table = pd.read_csv(uninterrupted.path / "predictions.csv")
    scores = _literal_scores(uninterrupted)
    assert table["probability_v"].to_numpy() == pytest.approx(scores.max(axis=1), abs=1e-5)


def test_head_variants_run(folder: Path) -> None:
    variant = ("pool=avg", "hidden_dim=8", "batch_norm=true", "dropout=0.3")
    run = _make(folder, *(f"downstream.head.{option}" for option in variant), runs="variant")
    assert run_experiment(run)
    state = torch.load(run.path / "classifier.pt", weights_only=True)
    assert state["head.hidden.0.weight"].shape == (8, 32)
    assert state["head.linear.weight"].shape == (3, 8)


def _assert_equal(run: RunDirectory, uninterrupted: RunDirectory) -> None:
    assert run.identity == uninterrupted.identity
    assert history(run) == history(uninterrupted)
    assert_same_state(final_state(run), final_state(uninterrupted))
    one, other = (torch.load(some.path / "classifier.pt", weights_only=True) for some in (run, uninterrupted))
    assert_same_state(one, other)
    one, other = (pd.read_csv(some.path / "predictions.csv") for some in (run, uninterrupted))
    pd.testing.assert_frame_equal(one, other, rtol=1e-5)  # other batch sizes may round differently


@pytest.mark.parametrize("fault", [*FAULTS, *TEST_FAULTS])
def test_one_fault(folder: Path, uninterrupted: RunDirectory, fault: str) -> None:
    options = ("downstream.training.keep_epochs=[1,2]", "execution.num_workers=1")
    run = _make(folder, *options, runs=f"once {fault}")
    inject_and_resume(run, fault, at_step=4)
    _assert_equal(run, uninterrupted)


def test_many_faults(folder: Path, uninterrupted: RunDirectory) -> None:
    run = _make(folder, "downstream.training.keep_epochs=[1,2]", runs="often")
    for fault, at_step in (
        ("SIGUSR2", 1),
        ("SIGKILL in the middle of a step", 2),
        ("SIGKILL between a checkpoint and its hash", 3),
        ("SIGTERM", 6),
        ("SIGKILL in the test", 0),
        ("SIGTERM in the test", 0),
        ("SIGKILL before the result", 9),
    ):
        assert in_process(run, fault, at_step=at_step) in (-9, 75), fault
    assert in_process(run) == 0
    _assert_equal(run, uninterrupted)


def test_a_frozen_backbone_stays_as_it_is_and_resumes(folder: Path) -> None:
    options = (
        "downstream.freeze_backbone_epochs=2",
        "downstream.optim.name=adam",
        "downstream.optim.groups.base.initial=1e-3",
        "downstream.head.dropout=0.5",
        "downstream.training.keep_epochs=[2]",
    )
    whole = _make(folder, *options, runs="frozen whole")
    assert in_process(whole) == 0
    settings = parse(DownstreamSettings, whole.config)
    start = random_init_backbones(settings.model, seed=0).video_backbone.state_dict()
    frozen, _ = load_checkpoint(checkpoint_path(whole.checkpoints, 6))
    for name, tensor in start.items():
        assert torch.equal(frozen["method"][f"video_backbone.{name}"], tensor), name
    end = final_state(whole)["method"]
    assert not torch.equal(end["video_backbone.conv1.0.weight"], start["conv1.0.weight"])
    assert not torch.equal(end["video_backbone.conv1.1.running_mean"], start["conv1.1.running_mean"])
    pieces = _make(folder, *options, runs="frozen pieces")
    for at_step in (2, 7):
        assert in_process(pieces, "SIGTERM", at_step=at_step) == 75
    assert in_process(pieces) == 0
    _assert_equal(pieces, whole)


def _backbone_at_the_end(run: RunDirectory) -> dict[str, torch.Tensor]:
    state = torch.load(run.path / "classifier.pt", weights_only=True)
    own = {name: tensor for name, tensor in state.items() if name.startswith("video_backbone.")}
    return {name.removeprefix("video_backbone."): tensor for name, tensor in own.items()}


def test_it_starts_from_the_weights_that_are_named(folder: Path) -> None:
    """Without a training step, the weights stay as loaded."""
    pretraining = RunDirectory.create("pretrain", tiny_config("pretrain", folder))
    assert run_experiment(pretraining)
    exported = pretraining.path / "video_backbone.pt"
    of_run = _make(folder, "downstream.training.epochs=0", parents=[pretraining])
    config = _config(folder, "downstream.training.epochs=0")
    files = {"video": str(exported), "audio": None}
    config["weights"] |= {**files, "fingerprint": weights_hash(**files)}
    released = RunDirectory.create("downstream", config)
    untrained = _make(folder, "downstream.training.epochs=0", "seed=3")
    for run in (of_run, released, untrained):
        assert run_experiment(run)
        assert run.result["steps"] == 0
    expected = load_video_backbone(exported).state_dict()
    assert_same_state(_backbone_at_the_end(of_run), dict(expected))
    assert_same_state(_backbone_at_the_end(released), dict(expected))
    model = parse(DownstreamSettings, untrained.config).model
    assert_same_state(
        _backbone_at_the_end(untrained), dict(random_init_backbones(model, seed=3).video_backbone.state_dict())
    )
    assert of_run.result["metrics"] == released.result["metrics"]
    assert len({run.identity for run in (of_run, released, untrained)}) == 3


@pytest.mark.parametrize(
    ("modality", "complaint"),
    [("audio", "fine-tuning trains the video network: set weights.video"), ("video", "holds audio weights; expected")],
)
def test_the_wrong_weights_are_refused(folder: Path, modality: str, complaint: str) -> None:
    config = _config(folder)
    backbones = random_init_backbones(parse(DownstreamSettings, config).model, seed=0)
    export_backbone(backbones.audio_backbone, folder / "audio.pt")
    files = {"video": None, "audio": None, modality: str(folder / "audio.pt")}
    config["weights"] |= {**files, "fingerprint": weights_hash(**files)}
    with pytest.raises(ValueError, match=complaint) as caught:
        run_experiment(RunDirectory.create("downstream", config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_a_fold_of_an_official_dataset_without_audio(folder: Path, name: str) -> None:
    root = make_miniature(name, folder / name)
    lengths = ("downstream.frames=8", "views.video.num_frames=8", "views.audio.seconds=4.0")  # clips have 2.5 s
    run = _make(folder, *data_overrides(name, root), "data.folds=[2]", *lengths, "downstream.training.epochs=1")
    assert run.label == f"untrained-s0-finetune-{name}-fold2"
    assert run.config["downstream"]["optim"]["groups"]["base"]["initial"] == 5e-4  # the table's, at 8 frames
    assert run_experiment(run)
    assert run.result["num_test_clips"] == 6
    assert run.result["metrics"]["data/fallback_fraction"] == 0.0  # clips without audio need no fallback
    assert run.result["metrics"]["eval/top1_v_fold2"] == run.result["metrics"]["eval/top1_v"]


def test_clips_without_video_are_refused(folder: Path) -> None:
    root = make_miniature("esc50", folder / "esc50")
    run = _make(folder, *data_overrides("esc50", root), "data.folds=[1]", "downstream.head.dropout=0", *_RATE)
    with pytest.raises(ValueError, match=r"fine-tuning needs video, 30 of 30 clips have none .*data.require="):
        run_experiment(run)


@pytest.mark.slow
def test_two_processes_fine_tune_together(folder: Path) -> None:
    whole = _make(folder, "execution.num_devices=2", runs="two whole")
    assert in_ranks(whole, 2) == [0, 0]
    options = ("execution.num_devices=2", "execution.max_steps_this_launch=5")
    pieces = _make(folder, *options, runs="two pieces")
    assert in_ranks(pieces, 2) == [75, 75]
    assert in_ranks(pieces, 2) == [0, 0]
    _assert_equal(pieces, whole)


@pytest.mark.slow
def test_a_full_size_step_runs(folder: Path) -> None:
    """R(2+1)D-18 with 15.38 M parameters, 8 x 224 x 224, batch 2, and a test with two segments per clip."""
    overrides = [
        "downstream=finetune",
        "scale=paper",
        "data.toy.num_classes=2",
        "data.toy.train_clips_per_class=1",
        "data.toy.val_clips_per_class=0",
        "data.toy.test_clips_per_class=1",
        "data.toy.seconds=2.5",
        "downstream.training.epochs=1",
        "downstream.training.draws_per_clip=1",
        "downstream.training.global_batch_size=2",
        "downstream.training.precision=fp32",
        "views.evaluation_clips=2",
        "execution.num_workers=0",
        "execution.device=cpu",
        f"data.root={folder / 'full'}",
        f"runs_root={folder / 'runs'}",
    ]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("downstream", overrides=overrides), resolve=True)
    config = complete(config, pretrained_on=None)
    run = RunDirectory.create("downstream", {**config, "data": prepare(config["data"], progress=False)})
    assert run_experiment(run)
    assert run.result["steps"] == 1
    state = final_state(run)["method"]
    counted = sum(t.numel() for n, t in state.items() if "running" not in n and "num_batches" not in n)
    assert counted == 15_379_136 + 2 * 512 + 2
