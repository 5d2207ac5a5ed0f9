"""A user's own method needs one file and one config, and no edit of the package."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import crisscross.methods
from crisscross.config.method import method_names
from crisscross.methods.base import DatasetInfo, build_method
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.methods.support import TINY
from tests.support import history, tiny_config

METHOD = '''
import torch
from torch import nn
from crisscross.methods import register
from crisscross.methods.base import BaseMethod

@register
class Labelled(BaseMethod):
    """Predict the label from the video of a single view."""

    num_views = 1
    uses_all_parameters = False

    def __init__(self, model, clips, *, margin):
        super().__init__(model)
        self.head = nn.Linear(self.video_backbone.feature_dim, clips.num_classes)

    def forward(self, views):
        loss = nn.functional.cross_entropy(self.head(self.video_backbone(views.video[0])), views.labels)
        return loss, {"loss/label": loss.detach()}
'''


def test_a_new_method_trains_through_the_same_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labelled.py").write_text(textwrap.dedent(METHOD))
    monkeypatch.setattr(crisscross.methods, "__path__", [*crisscross.methods.__path__, str(tmp_path)])
    assert "labelled" in method_names()
    config = tiny_config("pretrain", tmp_path)
    config["method"] = {"name": "labelled", "margin": 1}  # as in a file experiments/conf/method/labelled.yaml
    run = RunDirectory.create("pretrain", config)
    assert run.label == "labelled-mild-demo-s0"
    assert run_experiment(run)
    losses = [metrics["loss/label"] for _, metrics in history(run)]
    assert len(losses) == 9
    evaluation = RunDirectory.create("downstream", tiny_config("downstream", tmp_path), parents=[run])
    assert run_experiment(evaluation)


def test_a_file_without_a_registered_class_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unregistered.py").write_text("")
    monkeypatch.setattr(crisscross.methods, "__path__", [*crisscross.methods.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match=r"^method.name=unregistered: its file registers no class: put @register"):
        build_method({"name": "unregistered"}, TINY, DatasetInfo(num_clips=2, num_classes=1), seed=0)
