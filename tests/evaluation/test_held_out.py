"""What an evaluation saw, looked at again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crisscross.evaluation.held_out import HeldOut
from crisscross.experiment import run as run_experiment
from crisscross.run_directory import RunDirectory
from tests.support import tiny_config


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("held_out")
    run = RunDirectory.create("downstream", tiny_config("downstream", folder))
    assert run_experiment(run)
    return run


def test_features_are_those_of_the_evaluation_and_the_same_where_they_are_gone(
    evaluated: RunDirectory, tmp_path: Path
) -> None:
    held_out = HeldOut(evaluated)
    assert list(held_out.fold.test["path"]) == list(pd.read_csv(evaluated.path / "predictions.csv")["path"])
    found = {modality: held_out.features(modality) for modality in ("v", "a", "av")}
    assert found["v"].shape == found["a"].shape == (6, 2, 32)
    assert np.array_equal(found["av"], np.concatenate([found["v"], found["a"]], axis=-1))
    stored = np.fromfile(evaluated.path / "features" / "clips" / "v.f32", np.float32).reshape(18, 2, 32)
    assert np.array_equal(found["v"], stored[np.sort(held_out.manifest.split("test")["clip_id"])])
    copy = tmp_path / evaluated.path.name
    shutil.copytree(evaluated.path, copy)
    shutil.rmtree(copy / "features")
    before = sorted(copy.iterdir())
    again = HeldOut(RunDirectory(copy))
    np.testing.assert_allclose(again.features("av"), found["av"], rtol=1e-4, atol=1e-6)
    assert sorted(copy.iterdir()) == before


def test_the_middle_of_clips_as_networks_and_as_people_see_it(evaluated: RunDirectory) -> None:
    held_out = HeldOut(evaluated)
    paths = [*held_out.fold.test["path"][:2]]
    seen, heard = (held_out.middle(held_out.rows(paths), stream) for stream in "va")
    assert seen.video.shape == (2, 3, 4, 24, 24)
    assert seen.frames.shape == (2, 4, 24, 24, 3)
    assert (seen.frames.min() >= 0, seen.frames.max() <= 1, seen.audio) == (True, True, None)
    assert heard.audio.shape[:3] == (2, 1, 40)
    assert heard.frames is None
    features = held_out.networks()["v"](seen.video)
    assert features.shape == (2, 32)
    assert not features.requires_grad
    with pytest.raises(ValueError, match=r"nobody\.mp4 is no clip of demo: give paths as in predictions\.csv"):
        held_out.rows(["nobody.mp4"])
