"""Configs are checked before anything runs; every complaint is one line that names key, value and remedy."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.settings import KINDS
from crisscross.settings_base import parse
from crisscross.transforms.settings import AudioTransformSettings, VideoTransformSettings


def _compose(kind: str, *overrides: str) -> dict:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        return OmegaConf.to_container(compose(kind, overrides=list(overrides)), resolve=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize("data", ["toy", "folder"])
def test_every_shipped_config_is_valid(kind: str, scale: str, data: str) -> None:
    source = ["data.root=somewhere"] if data == "folder" else []
    parse(KINDS[kind], _compose(kind, f"scale={scale}", f"data={data}", *source))


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_the_config_spells_out_every_number_of_the_transforms(scale: str) -> None:
    """Else a changed default would change results without changing identities."""
    views = _compose("pretrain", f"scale={scale}")["views"]
    assert set(views["video"]["transform"]) == {field.name for field in fields(VideoTransformSettings)}
    assert set(views["audio"]["transform"]) == {field.name for field in fields(AudioTransformSettings)}


def test_paper_scale_is_the_papers() -> None:
    config = _compose("pretrain", "scale=paper")
    assert VideoTransformSettings(**config["views"]["video"]["transform"]) == VideoTransformSettings()
    assert AudioTransformSettings(**config["views"]["audio"]["transform"]) == AudioTransformSettings()
    settings = parse(KINDS["pretrain"], config)
    assert (settings.views.video.num_frames, settings.views.video.seconds) == (8, 0.5)
    assert settings.views.audio.seconds == 2.0
    assert (settings.training.epochs, settings.training.global_batch_size) == (100, 2048)
    assert settings.training.draws_per_clip == 5
    assert settings.optim.larc.trust == 0.001
    assert settings.optim.weight_decay == 1e-4
    assert settings.optim.groups["base"] == {
        "name": "warmup_cosine",
        "peak": 2e-4,
        "final": 1e-4,
        "warmup_epochs": 2,
    }
    assert settings.optim.groups["predictor"] == {"name": "constant", "value": 2e-3}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["relaxation=lots"], "relaxation=lots is unknown: choose one of none, mild, medium, mixed, extreme"),
        (["training.epochs=-1"], "training.epochs=-1: input should be greater than or equal to 0"),
        (["training.epochs=many"], "training.epochs=many: input should be a valid integer"),
        (["training.precision=fp64"], "training.precision=fp64: input should be 'fp32', 'bf16' or 'fp16'"),
        (["training.micro_batch_size=5"], "training.micro_batch_size=5 does not divide training.global_batch_size"),
        (["execution.num_devices=3", "training.global_batch_size=32"], "cannot be shared by execution.num_devices=3"),
        (["views.video.num_frames=64"], "a video segment of 4 s does not fit into 2 s of audio: lower views.video"),
        (["training.epochs=1", "optim.groups.base.warmup_epochs=1"], "leaves nothing of training.epochs=1"),
        (["data=folder"], "data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE"),
        (["+training.epoch=3"], "training.epoch is not a setting: check its spelling"),
        (["~training.epochs"], "training.epochs is missing: set it"),
        (["method.name=nothing"], "method.name=nothing is unknown: choose one of "),
        (["optim.groups.base.name=cosin"], "optim.groups.base: schedule name='cosin': expected one of"),
        (["optim.groups.base.warmup_epochs=two"], "optim.groups.base: "),
        (["optim.betas=[1.5,0.9]"], "optim.betas.0=1.5: input should be less than 1"),
        (["views.video.canvas_px=[0,40]"], "views.video.canvas_px.0=0: input should be greater than 0"),
        (["views.video.transform.crop_px=0"], "views.video.transform: crop_px got 0; expected at least 1"),
        (["+views.video.transform.crop=9"], "views.video.transform: got an unexpected keyword argument 'crop'"),
        (["views.audio.transform.sample_rate_hz=8000", "views.audio.transform.f_max_hz=4000"], "set the latter alone"),
    ],
)
def test_complaints(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(KINDS["pretrain"], _compose("pretrain", *overrides))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_complaints_come_at_once() -> None:
    with pytest.raises(ValueError, match=r"tracking.log_every_steps=0.*; training.epochs=-1"):
        parse(KINDS["pretrain"], _compose("pretrain", "training.epochs=-1", "tracking.log_every_steps=0"))


def test_one_source_of_weights() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        parse(KINDS["downstream"], _compose("downstream", "weights.run=a", "weights.video=b"))
    with pytest.raises(
        ValueError, match=r"weights.audio is not given, .* would evaluate an untrained audio network: set both"
    ):
        parse(KINDS["downstream"], _compose("downstream", "weights.video=b"))
    parse(KINDS["downstream"], _compose("downstream", "weights.video=b", "downstream.modalities=[v]"))
