"""Compact copies of real and of odd clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisscross.data.build_manifest import build_manifest
from crisscross.data.media.probe import probe
from crisscross.data.prepare import compact
from crisscross.data.prepare.compact_encode import CompactSettings, write_copy
from tests.data.copies import frames, peak_ratio_db, picture_times_s, read_copy, sound, streams_of
from tests.requirements import REAL_DATA, needs_real_data


@pytest.mark.slow
class TestRealClips:
    pytestmark = needs_real_data

    def test_some_clips(self, tmp_path):
        folder = Path(REAL_DATA) / "video" / "clips"
        for source in sorted(folder.glob("*.mp4"))[::12]:
            copy = tmp_path / source.name
            write_copy(source, copy, streams_of(source), CompactSettings())
            np.testing.assert_allclose(picture_times_s(copy), picture_times_s(source), atol=1e-6)
            found = probe(copy)
            canvas = (found.height, found.width)
            assert peak_ratio_db(frames(source, [1.0], canvas), frames(copy, [1.0], None)) > 30
            one, other = sound(source, 0.5, 2), sound(copy, 0.5, 2)
            assert np.corrcoef(one, other)[0, 1] > 0.9999
            assert np.abs(np.clip(one, -1, 1) - other).max() <= 2**-15

    def test_odd_files(self, tmp_path):
        folder = Path(REAL_DATA) / "video" / "torture"
        options = {"root": folder, "csv": folder / "torture.csv", "label_column": "source", "progress": False}
        for stream in ("video", "audio"):
            manifest = build_manifest(tmp_path / stream, require=(stream,), jobs=1, **options)
            report = compact.run(manifest, tmp_path / f"copy-{stream}", CompactSettings(64), jobs=1, progress=False)
            assert report.is_complete
            expected = {"video": ["bit_rot.mp4"], "audio": []}[stream]
            assert [path for path, _ in report.failures] == expected
            copies = read_copy(tmp_path / f"copy-{stream}", stream)
            assert len(copies.clips) == report.num_copied
            left = manifest.clips[~manifest.clips["path"].isin(expected)]
            for name in ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s"):
                has_video = left["video_start_s"].notna().to_numpy()
                apart = np.abs(left[name].to_numpy() - copies.clips[name].to_numpy())[has_video]
                assert np.nanmax(apart, initial=0) < 1e-3, name
