"""Real and irregular files compared with decoding everything from the start."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from crisscross.data.media.decode import DecodeError, probe
from crisscross.data.media.video import pixel_aspect, to_rgb
from tests.data.windows import decode_audio, decode_video, nearest_numbers
from tests.requirements import REAL_DATA, needs_real_data


def _real_files(*patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(Path(REAL_DATA or "none").glob(pattern))]


# As torture.csv suggests: damaged files and those without timestamps or frames are rejected.
NO_FRAME = {
    "corrupted_packet.mp4": "does not decode",
    "truncated_moov_front.mp4": "does not decode",
    "tiny.avi": "holds no frames",
    "tiny_with_audio.mp4": "no video stream",
    "audio_only.mp4": "no video stream",
    "mp3_with_cover.mp3": "only a cover picture",
    "raw_annexb.h264": "no timestamps",
}


CANNOT_OPEN = {
    "ebml_unsupported.mkv": "cannot open: ",
    "truncated_no_moov.mp4": "cannot open: ",
    "html_error_page.mp4": "cannot open: ",
    "zero_bytes.mp4": "empty file",
}


class TestRealFiles:
    pytestmark = needs_real_data

    @pytest.mark.slow
    def test_every_torture_file_is_accepted_or_rejected_with_a_reason(self):
        folder = Path(REAL_DATA) / "video" / "torture"
        with (folder / "torture.csv").open(newline="", encoding="utf-8") as table:
            names = [row["file"] for row in csv.DictReader(table)]
        assert len(names) == 46
        for name in names:
            if name in CANNOT_OPEN:
                with pytest.raises(DecodeError) as caught:
                    probe(folder / name)
                assert caught.value.reason.startswith(CANNOT_OPEN[name])
                continue
            found = probe(folder / name, thorough=True)
            if name == "bit_rot.mp4":
                assert "does not decode" in found.video_problem
                assert "does not decode" in found.audio_problem
                continue
            assert NO_FRAME.get(name, "") in found.video_problem, name
            assert bool(found.video_problem) == (name in NO_FRAME), name
            if not found.video_problem:
                assert found.video_end_s > found.video_start_s
                span_s = found.video_end_s - found.video_start_s
                starts_s = [found.video_start_s, found.video_start_s + span_s / 2]
                assert decode_video(folder / name, starts_s, canvas=(32, 40)).shape == (2, 8, 32, 40, 3)
            if not found.audio_problem:
                starts_s = [found.audio_start_s, found.audio_end_s - 0.5]
                assert np.isfinite(decode_audio(folder / name, starts_s)).all()

    def test_contents_of_irregular_files(self):
        folder = Path(REAL_DATA) / "video" / "torture"
        size = {
            name: (probe(folder / name).height, probe(folder / name).width) for name in ("rotate90.mov", "sar_2_1.mp4")
        }
        assert size == {"rotate90.mov": (568, 320), "sar_2_1.mp4": (180, 640)}
        late = probe(folder / "video_starts_2s_late.mp4")
        assert late.video_start_s == pytest.approx(2.035, abs=1e-3)
        assert late.audio_start_s == pytest.approx(0.016, abs=1e-3)
        two = probe(folder / "two_video_streams_audio_longer.mp4")
        assert (two.height, two.width, two.video_end_s) == (180, 320, pytest.approx(13.0, abs=1e-3))
        assert probe(folder / "wmv3_fps_unknown.wmv").frame_rate_hz == pytest.approx(15, abs=0.2)

    @pytest.mark.slow
    def test_windows_equal_decoding_everything_from_the_start(self):
        """Compare with an independent reference: decode all, sort the times, take the nearest frame, scale it."""
        rng = np.random.default_rng(0)
        files = _real_files("video/clips/*.mp4")[::7] + _real_files("video/ucf101/*/*.avi")[::14]
        files += _real_files("video/hmdb51/*/*.avi", "video/torture/*.m[kpo][vg4]", "video/torture/*.ts")
        skipped = set(NO_FRAME) | set(CANNOT_OPEN) | {"bit_rot.mp4"}
        for path in files:
            if path.name in skipped or path.name.startswith("av1"):
                continue
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                aspect = pixel_aspect(stream)
                times_s, shown = [], []
                for frame in container.decode(stream):
                    times_s.append(frame.time)
                    shown.append(to_rgb(frame, aspect, (24, 32)))
            times_s.sort()
            starts_s = sorted(rng.uniform(times_s[0], times_s[-1], size=2), reverse=True)
            video = decode_video(path, starts_s, canvas=(24, 32))
            for window, start_s in zip(video, starts_s, strict=True):
                expected = [shown[number] for number in nearest_numbers(times_s, start_s)]
                assert np.array_equal(window, np.stack(expected)), path.name
