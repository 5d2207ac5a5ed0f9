"""Fine-tuning recipes: the paper's table, the resolved config, and error messages that name the key."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.evaluation import complete
from crisscross.config.experiment import DownstreamSettings, ignored
from crisscross.config.finetune_recipes import RECIPE_KEYS, TABLE, recipe_of
from crisscross.config.optim import StepsDecaySettings

PAPER_TABLE = """
| Kinetics-Sound, Kinetics400 | UCF101 | 8 | 64 | 5e-4 | no |
| Kinetics-Sound, Kinetics400 | UCF101 | 32 | 32 | 7e-5 | no |
| Kinetics-Sound, Kinetics400 | HMDB51 | 8 | 64 | 5e-4 | no |
| Kinetics-Sound, Kinetics400 | HMDB51 | 32 | 32 | 1e-4 | no |
| AudioSet | UCF101 | 8 | 64 | 7e-5 | 0.1 |
| AudioSet | UCF101 | 32 | 32 | 7e-5 | no |
| AudioSet | HMDB51 | 8 | 64 | 1e-4 | 0.1 |
| AudioSet | HMDB51 | 32 | 32 | 1e-4 | 0.1 |
"""


NAMES = {"Kinetics-Sound": "kinetics_sound", "Kinetics400": "kinetics400", "AudioSet": "audioset"}


def test_the_table_is_the_papers() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAPER_TABLE.strip().splitlines()]
    assert len(rows) == len(TABLE) == 8
    for pretrained, dataset, frames, batch, rate, dropout in rows:
        for name in pretrained.split(", "):
            found = recipe_of(NAMES[name], dataset.lower(), int(frames))
            assert (found.batch_size, found.learning_rate) == (int(batch), float(rate))
            assert found.dropout == (0.0 if dropout == "no" else float(dropout))
            assert found.milestone_epochs == ((6, 10, 14) if frames == "8" else (8, 12, 16))
            assert found.epochs == 20


def _composed(*overrides: str) -> dict[str, Any]:
    chosen = ["downstream=finetune", "scale=paper", "data=folder", "data.root=x", *overrides]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("downstream", overrides=chosen), resolve=True)


@pytest.mark.parametrize("frames", [8, 32])
def test_the_resolved_config_has_all_numbers(frames: int) -> None:
    config = complete(_composed("data.name=hmdb51", f"downstream.frames={frames}"), pretrained_on="audioset")
    settings = parse(DownstreamSettings, config)
    protocol = settings.downstream
    assert protocol.pretrained_on == "audioset"
    assert (protocol.training.epochs, protocol.training.draws_per_clip) == (20, 10)
    assert protocol.training.global_batch_size == {8: 64, 32: 32}[frames]
    assert (protocol.head.pool, protocol.head.dropout, protocol.head.hidden_dim) == ("max", 0.1, None)
    assert (protocol.optim.name, protocol.optim.momentum, protocol.optim.weight_decay) == ("sgd", 0.9, 0.0)
    assert not protocol.optim.larc.enabled
    milestones = {8: [6, 10, 14], 32: [8, 12, 16]}[frames]
    schedule = StepsDecaySettings(name="steps_decay", initial=1e-4, gamma=0.3, milestone_epochs=milestones)
    assert protocol.optim.groups == {"base": schedule}
    assert settings.views.video.num_frames == frames
    assert settings.views.video.seconds == frames / 16
    assert settings.views.video.transform["crop_px"] == 224
    assert settings.views.evaluation_clips == 10


def test_numbers_that_are_given_stay() -> None:
    given = ("downstream.head.dropout=0.5", "downstream.optim.groups.base.initial=0.1", "data.name=ucf101")
    protocol = complete(_composed(*given), pretrained_on="kinetics400")["downstream"]
    assert (protocol["head"]["dropout"], protocol["optim"]["groups"]["base"]["initial"]) == (0.5, 0.1)
    assert protocol["training"]["global_batch_size"] == 64
    with pytest.raises(ValueError, match=r"data.name=folder.*: the paper has recipes for .* or set downstream"):
        complete(_composed(), pretrained_on="kinetics400")
    with pytest.raises(ValueError, match=r"choose from these, or set downstream") as caught:
        complete(_composed(*given[:2]), pretrained_on="kinetics400")
    assert str(caught.value).endswith(
        "or set downstream.training.global_batch_size, downstream.training.epochs,"
        " downstream.optim.groups.base.milestone_epochs"
    )
    everything = [f"{key}={[2] if 'milestone' in key else 2}" for key in RECIPE_KEYS if "dropout" not in key]
    assert complete(_composed(*everything, "downstream.head.dropout=0"), pretrained_on="mine")


def test_weight_files_need_a_pretraining_set() -> None:
    config = _composed("data.name=ucf101", "weights.video=some.pt")
    with pytest.raises(ValueError, match=r"downstream.pretrained_on is null: weight files do not record"):
        complete(config, pretrained_on=None)
    untrained = complete(_composed("data.name=ucf101"), pretrained_on=None)
    assert untrained["downstream"]["pretrained_on"] == "nothing"
    assert untrained["downstream"]["optim"]["groups"]["base"]["initial"] == 5e-4


def test_avids_recipe_can_be_written() -> None:
    """BASELINES: 5 head-only epochs, then Adam 1e-4, dropout 0.5, UCF101 16 epochs, x0.3 at 6/10/14 of them."""
    recipe = (
        "data.name=ucf101",
        "downstream.freeze_backbone_epochs=5",
        "downstream.optim.name=adam",
        "downstream.optim.groups.base.initial=1e-4",
        "downstream.optim.groups.base.milestone_epochs=[11,15,19]",
        "downstream.head.dropout=0.5",
        "downstream.head.batch_norm=true",
        "downstream.training.epochs=21",
        "downstream.training.global_batch_size=32",
    )
    settings = parse(DownstreamSettings, complete(_composed(*recipe), pretrained_on="audioset"))
    assert settings.downstream.freeze_backbone_epochs == 5


def test_epochs_past_the_end_are_reported() -> None:
    overrides = ("data.name=ucf101", "downstream.training.epochs=10", "downstream.training.keep_epochs=[10,11]")
    settings = parse(DownstreamSettings, complete(_composed(*overrides), pretrained_on="kinetics400"))
    remedy = "downstream.training.epochs=10: leave out what is beyond, or raise downstream.training.epochs"
    assert ignored(settings) == [
        f"downstream.training.keep_epochs=[10,11]: 11 will not be reached, as {remedy}",
        f"downstream.optim.groups.base.milestone_epochs=[6,10,14]: 10, 14 will not be reached, as {remedy}",
    ]
    assert ignored(parse(DownstreamSettings, complete(_composed(overrides[0]), pretrained_on="kinetics400"))) == []


def test_several_folds_are_refused() -> None:
    config = complete(_composed("data.name=ucf101", "data.folds=[1,2,3]"), pretrained_on="audioset")
    with pytest.raises(ValueError, match=r"data.folds=\[1, 2, 3\]: fine-tuning takes one fold per experiment"):
        parse(DownstreamSettings, config)


def test_frames_are_set_in_one_place() -> None:
    config = complete(_composed("data.name=ucf101", "views.video.num_frames=32"), pretrained_on="audioset")
    with pytest.raises(ValueError, match=r"views.video.num_frames=32 is not downstream.frames=8: set"):
        parse(DownstreamSettings, config)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["downstream.training.draws_per_clip=0"], "downstream.training.draws_per_clip=0: expected more than 0"),
        (["+downstream.foo=1"], "downstream.foo is not a setting: check its spelling"),
        (["~downstream.head.pool"], "downstream.head.pool is missing: set it"),
        (["downstream.head.pool=mean"], "downstream.head.pool=mean: expected max or avg"),
        (["downstream.training.micro_batch_size=5"], "downstream.training.micro_batch_size=5 does not divide training"),
        (
            ["downstream.optim.groups.base.name=cosin"],
            "downstream.optim.groups.base.name=cosin is unknown: choose one",
        ),
        (
            ["downstream.freeze_backbone_epochs=30"],
            "downstream.freeze_backbone_epochs=30 is more than downstream.training.epochs=20: lower it (20 = only",
        ),
        (["execution.num_devices=3"], "a pass of 64 samples cannot be shared by execution.num_devices=3"),
    ],
)
def test_complaints_name_the_key(overrides: list[str], complaint: str) -> None:
    config = complete(_composed("data.name=ucf101", *overrides), pretrained_on="kinetics400")
    with pytest.raises(ValueError) as caught:
        parse(DownstreamSettings, config)
    assert str(caught.value).startswith(complaint)


def test_an_unknown_protocol_lists_those_there_are() -> None:
    config = {**_composed(), "downstream": {"name": "finetun"}}
    with pytest.raises(ValueError, match=r"downstream.name=finetun is unknown: choose one of svm, .*finetune"):
        parse(DownstreamSettings, config)
