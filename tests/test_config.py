"""Configs are checked before anything runs; each error is one line that names key, value and remedy."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.evaluation import complete
from crisscross.config.experiment import KINDS, ignored
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings


def _compose(kind: str, *overrides: str) -> dict:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose(kind, overrides=list(overrides)), resolve=True)
    return complete(config, pretrained_on=None) if kind == "downstream" else config


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
    assert settings.optim.groups["base"].model_dump() == {
        "start": 0.0,
        "name": "warmup_cosine",
        "peak": 2e-4,
        "final": 1e-4,
        "warmup_epochs": 2,
    }
    assert settings.optim.groups["predictor"].model_dump() == {"name": "constant", "value": 2e-3}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["relaxation=lots"], "relaxation=lots is unknown: choose one of none, mild, medium, mixed, extreme"),
        (["training.epochs=-1"], "training.epochs=-1: expected 0 or more"),
        (["training.epochs=many"], "training.epochs=many: expected a whole number"),
        (["training.precision=fp64"], "training.precision=fp64: expected fp32, bf16 or fp16"),
        (["training.micro_batch_size=5"], "training.micro_batch_size=5 does not divide training.global_batch_size"),
        (["execution.num_devices=3", "training.global_batch_size=32"], "cannot be shared by execution.num_devices=3"),
        (["views.video.num_frames=64"], "a video segment of 4 s does not fit into 2 s of audio: lower views.video"),
        (["training.epochs=1", "optim.groups.base.warmup_epochs=1"], "leaves nothing of training.epochs=1"),
        (["data=folder"], "data=folder needs clips: set data.root=DIR (a class-folder tree) or data.csv=FILE"),
        (["+training.epoch=3"], "training.epoch is not a setting: check its spelling"),
        (["~training.epochs"], "training.epochs is missing: set it"),
        (["method.name=nothing"], "method.name=nothing is unknown: choose one of "),
        (
            ["optim.groups.base.name=cosin"],
            "optim.groups.base.name=cosin is unknown: choose one of constant,",
        ),
        (["optim.groups.base.warmup_epochs=two"], "optim.groups.base.warmup_epochs=two: expected a number"),
        (["training.epochs=1.5"], "training.epochs=1.5: expected a whole number"),
        (["training.compile=maybe"], "training.compile=maybe: expected true or false"),
        (["training.keep_epochs=5"], "training.keep_epochs=5: expected a list, such as [a,b]"),
        (["training.keep_epochs=null"], "training.keep_epochs=null: expected a list, such as [a,b]"),
        (["optim.larc=true"], "optim.larc=true: expected a group of settings, not one value"),
        (["optim.betas=[0.9]"], "optim.betas=[0.9]: too short: give one value more"),
        (["optim.betas=[0.9,0.9,0.9]"], "optim.betas=[0.9,0.9,0.9]: expected 2 or fewer values"),
        (["data=folder", "data.root=x", "data.require=[]"], "data.require=[]: expected 1 or more values"),
        (["data.name=3"], "data.name=3: expected text (what looks like a number needs quotes of its own)"),
        (["optim.betas=[1.5,0.9]"], "optim.betas.0=1.5: expected less than 1"),
        (["views.video.canvas_px=[0,40]"], "views.video.canvas_px.0=0: expected more than 0"),
        (["views.video.transform.crop_px=0"], "views.video.transform: crop_px got 0; expected at least 1"),
        (["+views.video.transform.crop=9"], "views.video.transform.crop is not a setting: check its spelling"),
        (["views.video.transform.crop_px=many"], "views.video.transform.crop_px=many: expected a whole number"),
        (["views.video.transform.mean=3"], "views.video.transform.mean=3: expected a list, such as [a,b]"),
        (["~optim.groups.base.name"], "optim.groups.base.name is missing: set it"),
        (["~method.name"], "method.name is missing: choose one of "),
        (["model.video=3"], "model.video=3: expected a group of settings, not one value"),
        (["training.epochs='" + 5000 * "9" + "'"], "expected a whole number with fewer digits"),
        (["views.audio.transform.sample_rate_hz=8000", "views.audio.transform.f_max_hz=4000"], "set only the latter"),
    ],
)
def test_complaints(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(KINDS["pretrain"], _compose("pretrain", *overrides))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "valid" not in str(caught.value)  # pydantic's word


def test_a_wrong_item_does_not_make_a_list_too_short() -> None:
    with pytest.raises(ValueError, match=r"^data.require.0=smell: expected video or audio$"):
        parse(KINDS["pretrain"], _compose("pretrain", "+data.require=[smell]"))


def test_a_protocol_needs_a_name() -> None:
    with pytest.raises(ValueError, match=r"^downstream.name is missing: set it"):
        parse(KINDS["downstream"], _compose("downstream", "~downstream.name"))


def test_all_complaints_come_at_once() -> None:
    with pytest.raises(ValueError, match=r"tracking.log_every_steps=0.*; training.epochs=-1"):
        parse(KINDS["pretrain"], _compose("pretrain", "training.epochs=-1", "tracking.log_every_steps=0"))


def test_one_source_of_weights() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        parse(KINDS["downstream"], _compose("downstream", "weights.run=a", "weights.video=b"))
    with pytest.raises(
        ValueError, match=r"weights.audio is not set, .* would evaluate an untrained audio network: set both"
    ):
        parse(KINDS["downstream"], _compose("downstream", "weights.video=b"))
    parse(KINDS["downstream"], _compose("downstream", "weights.video=b", "downstream.modalities=[v]"))


@pytest.mark.parametrize(
    ("overrides", "modalities"),
    [
        (["downstream=svm"], ["v", "a", "av"]),
        (["downstream=linear", "data=kinetics400", "data.root=x"], ["v", "a", "av"]),
        (["downstream=svm", "data=ucf101", "data.root=x"], ["v"]),
        (["downstream=linear", "data=folder", "data.root=x", "data.require=[video]"], ["v"]),
        (["downstream=linear", "data=esc50", "data.root=x"], ["a"]),
        (["downstream=retrieval"], ["v"]),
        (["downstream=retrieval", "data=esc50", "data.root=x"], ["a"]),
        (["downstream=svm_esc50"], ["a"]),
        (["downstream=svm", "data=ucf101", "data.root=x", "downstream.modalities=[a]"], ["a"]),
    ],
)
def test_modalities_are_those_that_the_clips_have(overrides: list[str], modalities: list[str]) -> None:
    config = _compose("downstream", *overrides)
    assert config["downstream"]["modalities"] == modalities
    parse(KINDS["downstream"], config)


@pytest.mark.parametrize("epoch", ["last", "-1", "1.5", "true"])
def test_an_epoch_is_a_number(epoch: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(KINDS["downstream"], _compose("downstream", "weights.run=a", f"weights.epoch={epoch}"))
    assert str(caught.value).endswith(
        ": expected the number of an epoch that the pretraining has kept (training.keep_epochs), 0 for before its first"
        " step, or null for its end"
    )


def test_epochs_past_the_end_are_reported() -> None:
    assert ignored(parse(KINDS["pretrain"], _compose("pretrain", "training.keep_epochs=[5,22]"))) == []
    assert ignored(parse(KINDS["pretrain"], _compose("pretrain", "training.keep_epochs=[5,30]"))) == [
        "training.keep_epochs=[5,30]: 30 will not be reached, as training.epochs=22: leave out what is beyond, or"
        " raise training.epochs"
    ]
