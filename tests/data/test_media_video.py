"""Video windows of real container files compared with known content."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from crisscross.data.media.decode import probe
from tests.data.clips import even_times_s, read_numbers, tone, write_clip
from tests.data.windows import decode_video, nearest_numbers


class TestVideo:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
    @pytest.mark.parametrize("key_frame_every", [12, 250])
    def test_nearest_frame_at_any_start(self, tmp_path, suffix, key_frame_every):
        times_s = even_times_s(150, 25)
        codec = "mpeg4" if suffix == ".avi" else "libx264"
        path = write_clip(
            tmp_path / f"a{suffix}",
            times_s=times_s,
            key_frame_every=key_frame_every,
            video_codec=codec,
            ticks_per_s=25 if suffix == ".avi" else 12800,
        )
        offset_s = probe(path).video_start_s
        for starts_s in ([0.0, 3.017], [4.511, 1.203], [2.0, 2.25], [5.3, 0.013]):
            numbers = read_numbers(decode_video(path, [s + offset_s for s in starts_s]))
            assert numbers.tolist() == [nearest_numbers(times_s, s) for s in starts_s]

    @pytest.mark.parametrize("codec", ["libx264", "libx265"])
    def test_skipping_non_reference_frames_before_a_window_changes_nothing(self, tmp_path, codec, monkeypatch):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(150, 25), key_frame_every=250, video_codec=codec)
        for start_s in (0.5, 2.013, 4.5, 5.7):
            assert read_numbers(decode_video(path, [start_s]))[0].tolist() == nearest_numbers(
                even_times_s(150, 25), start_s
            )
        skimmed = decode_video(path, [2.013, 4.5])
        monkeypatch.setattr("crisscross.data.media.video.NONREF_SKIP_CODECS", ())
        assert np.array_equal(skimmed, decode_video(path, [2.013, 4.5]))

    def test_goes_by_timestamps_where_the_rate_varies(self, tmp_path):
        rng = np.random.default_rng(0)
        times_s = np.cumsum(rng.uniform(0.01, 0.4, size=60).round(3))
        path = write_clip(tmp_path / "vfr.mkv", times_s=times_s, ticks_per_s=1000)
        for start_s in (times_s[0], 1.7, 4.05, 8.2):
            assert read_numbers(decode_video(path, [start_s]))[0].tolist() == nearest_numbers(times_s, start_s)

    def test_tie_goes_to_the_earlier_frame(self, tmp_path):
        path = write_clip(tmp_path / "tie.mkv", times_s=even_times_s(20, 10), ticks_per_s=1000)
        assert read_numbers(decode_video(path, [0.35], num_frames=4, frame_rate_hz=10))[0].tolist() == [3, 4, 5, 6]

    def test_a_rate_below_16_repeats_and_a_rate_above_skips(self, tmp_path):
        slow = write_clip(tmp_path / "slow.mp4", times_s=even_times_s(10, 4))
        assert read_numbers(decode_video(slow, [0.0]))[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
        fast = write_clip(tmp_path / "fast.mp4", times_s=even_times_s(120, 64))
        assert read_numbers(decode_video(fast, [0.5]))[0].tolist() == list(range(32, 64, 4))

    def test_first_and_last_frame_are_repeated_beyond_the_ends(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(50, 25))
        assert read_numbers(decode_video(path, [-0.5]))[0].tolist() == [0] * 8
        assert read_numbers(decode_video(path, [9.0, -0.25])).tolist() == [[49] * 8, [0, 0, 0, 0, 0, 2, 3, 5]]

    def test_windows_keep_their_order_and_identical_ones_are_equal(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25))
        video = decode_video(path, [2.0, 0.5, 2.0], canvas=(32, 40))
        assert video.shape == (3, 8, 32, 40, 3)
        assert video.dtype == np.uint8
        assert np.array_equal(video[0], video[2])
        assert np.array_equal(video[1], decode_video(path, [0.5], canvas=(32, 40))[0])

    def test_a_static_canvas_gives_the_same_frame(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(30, 25), height=120, width=160)
        native, small = decode_video(path, [0.5]), decode_video(path, [0.5], canvas=(30, 40))
        by_blocks = native.reshape(1, 8, 30, 4, 40, 4, 3).mean(axis=(3, 5))
        assert np.abs(by_blocks - small).mean() < 2

    @pytest.mark.parametrize("rotation", [0, 90, 180, -90])
    def test_rotation_is_applied(self, tmp_path, rotation):
        upright = write_clip(tmp_path / "up.mp4", times_s=even_times_s(5, 25))
        turned = write_clip(tmp_path / "turned.mp4", times_s=even_times_s(5, 25), rotation=rotation)
        expected = np.rot90(decode_video(upright, [0.0])[0, 3], rotation // 90)
        assert np.array_equal(decode_video(turned, [0.0])[0, 3], expected)
        found = probe(turned)
        assert (found.height, found.width) == expected.shape[:2]
        canvas = decode_video(turned, [0.0], canvas=(20, 60))
        assert canvas.shape == (1, 8, 20, 60, 3)

    @pytest.mark.parametrize(("aspect", "size"), [(Fraction(2, 1), (48, 160)), (Fraction(1, 2), (48, 40))])
    def test_pixels_are_made_square(self, tmp_path, aspect, size):
        path = write_clip(tmp_path / "sar.mp4", times_s=even_times_s(5, 25), pixel_aspect=aspect)
        assert (probe(path).height, probe(path).width) == size
        assert decode_video(path, [0.0]).shape[2:4] == size

    @pytest.mark.parametrize(
        ("codec", "pixel_format", "height", "width"),
        [
            ("libx264", "yuv420p10le", 48, 80),
            ("libx264", "yuv444p", 49, 81),
            ("ffv1", "yuva420p", 48, 80),
            ("libx264", "yuv422p", 48, 80),
        ],
    )
    def test_pixel_formats_and_odd_sizes(self, tmp_path, codec, pixel_format, height, width):
        path = write_clip(
            tmp_path / "a.mkv",
            times_s=even_times_s(40, 25),
            video_codec=codec,
            pixel_format=pixel_format,
            height=height,
            width=width,
        )
        video = decode_video(path, [0.8], frame_rate_hz=25.0)
        assert video.shape == (1, 8, height, width, 3)
        assert read_numbers(video)[0].tolist() == list(range(20, 28))

    def test_full_and_limited_range_give_the_same_levels(self, tmp_path):
        levels = []
        for full_range in (False, True):
            path = write_clip(tmp_path / f"{full_range}.mp4", times_s=even_times_s(5, 25), full_range=full_range)
            levels.append(decode_video(path, [0.0])[0, 0, 40, 40].astype(int))
        assert np.abs(levels[0] - levels[1]).max() <= 4
        assert np.abs(levels[0] - 64).max() <= 4

    def test_shuffled_timestamps_keep_the_decoding_order(self, tmp_path):
        path = write_clip(
            tmp_path / "shuffled.avi", times_s=even_times_s(60, 25), ticks_per_s=25, video_options={"bf": "3"}
        )
        with av.open(str(path)) as container:
            stored = [frame.pts for frame in container.decode(video=0)]
        assert stored != sorted(stored), "the file does not show the fault that it is made for"
        start_s = probe(path).video_start_s
        for first in (0, 7, 20, 33):
            numbers = read_numbers(decode_video(path, [start_s + first / 25], num_frames=12, frame_rate_hz=25.0))
            assert numbers[0].tolist() == list(range(first, first + 12))

    @pytest.mark.parametrize("suffix", [".mpg", ".ts"])
    def test_seeks_that_land_late_or_nowhere(self, tmp_path, suffix):
        program_stream = suffix == ".mpg"
        path = write_clip(
            tmp_path / f"a{suffix}",
            times_s=even_times_s(100, 25),
            waveform=tone(440, 4, 48000),
            sample_rate_hz=48000,
            video_codec="mpeg1video" if program_stream else "libx264",
            audio_codec="mp2",
            ticks_per_s=25,
        )
        start_s = probe(path).video_start_s
        assert start_s > 0
        for first in (0, 30, 50, 90):
            numbers = read_numbers(decode_video(path, [start_s + first / 25], frame_rate_hz=25.0))
            assert numbers[0].tolist() == list(range(first, first + 8))
