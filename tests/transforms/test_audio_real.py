"""The constants of the spectrograms' normalization, on real clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.views import AudioTransformSettings
from crisscross.data.media.decode import probe
from crisscross.data.relaxation import even_starts
from crisscross.transforms.audio import log_spectrogram
from tests.data.windows import decode_audio
from tests.requirements import REAL_DATA, needs_real_data

pytestmark = needs_real_data


@pytest.mark.parametrize("views", ["paper", "avid_paper"])
def test_the_spectrograms_of_real_clips_have_about_mean_0_and_deviation_1(views: str) -> None:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("pretrain", [f"views={views}"]).views.audio.transform, resolve=True)
    settings, seen = AudioTransformSettings(**config), []
    for path in sorted(Path(REAL_DATA, "video", "clips").glob("*.mp4")):
        found = probe(path)
        starts = even_starts(found.audio_start_s, found.audio_end_s, seconds=2.0, num=2)
        waves = decode_audio(path, starts, seconds=2.0, sample_rate_hz=settings.sample_rate_hz)
        seen.append(log_spectrogram(torch.from_numpy(waves), settings))
    values = torch.cat(seen)
    assert len(values) == 140
    assert values.mean().abs() < 0.1  # the paper's constants are of other clips
    assert (values.std() - 1).abs() < 0.1
