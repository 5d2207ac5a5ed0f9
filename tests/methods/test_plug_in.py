"""A second method needs one file and one config, and no edit anywhere else."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import crisscross.methods
from crisscross.config.method import method_names
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.support import history, tiny_config

METHOD = '''
import torch
from torch import nn
from crisscross.methods.base import BaseMethod

class Method(BaseMethod):
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
    config["method"] = {"name": "labelled", "margin": 1}  # what experiments/conf/method/labelled.yaml would hold
    run = RunDirectory.create("pretrain", config)
    assert run.label == "labelled-mild-demo-s0"
    assert run_experiment(run)
    losses = [metrics["loss/label"] for _, metrics in history(run)]
    assert len(losses) == 9
    evaluation = RunDirectory.create("downstream", tiny_config("downstream", tmp_path), parents=[run])
    assert run_experiment(evaluation)
