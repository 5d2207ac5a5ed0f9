"""Windows of real container files against content that is known, and against decoding everything from the start."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from crisscross.data import decode as decode_module
from crisscross.data.decode import DecodeError, decode_windows, probe
from tests.data.clips import even_times_s, impulses, read_numbers, tone, write_clip
from tests.requirements import REAL_DATA, needs_real_data

RATE_HZ = 16000


def decode_video(path: Path, starts_s, *, num_frames=8, frame_rate_hz=16.0, canvas=None) -> np.ndarray:
    video, audio = decode_windows(
        path,
        video_starts_s=starts_s,
        num_frames=num_frames,
        frame_rate_hz=frame_rate_hz,
        canvas=canvas,
        audio_starts_s=[],
        audio_seconds=1,
        sample_rate_hz=RATE_HZ,
    )
    assert audio is None
    return video


def decode_audio(path: Path, starts_s, *, seconds=1.0, sample_rate_hz=RATE_HZ) -> np.ndarray:
    video, audio = decode_windows(
        path,
        video_starts_s=[],
        num_frames=1,
        frame_rate_hz=1,
        canvas=None,
        audio_starts_s=starts_s,
        audio_seconds=seconds,
        sample_rate_hz=sample_rate_hz,
    )
    assert video is None
    return audio


def nearest_numbers(times_s, start_s: float, *, num_frames=8, frame_rate_hz=16.0) -> list[int]:
    """The reference: the number of the picture nearest to each wanted time, the earlier of two equally near."""
    wanted_s = start_s + np.arange(num_frames) / frame_rate_hz
    return [int(np.argmin(np.abs(np.asarray(times_s) - w).round(6))) for w in wanted_s]


class TestPictures:
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
    def test_leaving_out_unreferenced_pictures_before_a_window_changes_nothing(self, tmp_path, codec, monkeypatch):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(150, 25), key_frame_every=250, video_codec=codec)
        for start_s in (0.5, 2.013, 4.5, 5.7):
            assert read_numbers(decode_video(path, [start_s]))[0].tolist() == nearest_numbers(
                even_times_s(150, 25), start_s
            )
        skimmed = decode_video(path, [2.013, 4.5])
        monkeypatch.setattr("crisscross.data.pictures.SKIMMED_CODECS", ())
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

    def test_a_static_canvas_gives_the_same_picture(self, tmp_path):
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
            sound=tone(440, 4, 48000),
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


class TestSound:
    @pytest.mark.parametrize("sample_rate_hz", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
    def test_a_tone_comes_out_exact_at_every_rate(self, tmp_path, sample_rate_hz):
        path = write_clip(
            tmp_path / "a.mkv",
            sound=tone(440, 4, sample_rate_hz),
            sample_rate_hz=sample_rate_hz,
            audio_codec="pcm_s16le",
        )
        expected = tone(440, 4, RATE_HZ)[0]
        audio = decode_audio(path, [1.0, 2.5])
        assert audio.shape == (2, RATE_HZ)
        assert audio.dtype == np.float32
        assert np.abs(audio[0] - expected[16000:32000]).max() < 1e-4
        assert np.abs(audio[1] - expected[40000:56000]).max() < 1e-4

    def test_no_alias_of_what_lies_above_the_new_band(self, tmp_path):
        path = write_clip(tmp_path / "a.mkv", sound=tone(9000, 3, 44100), audio_codec="pcm_s16le")
        assert np.abs(decode_audio(path, [1.0])).max() < 1e-3

    def test_a_window_is_a_slice_of_the_whole_bit_for_bit(self, tmp_path):
        rng = np.random.default_rng(0)
        noise = rng.uniform(-0.5, 0.5, size=(2, 44100 * 6)).astype(np.float32)
        path = write_clip(tmp_path / "a.mp4", sound=noise, times_s=even_times_s(150, 25))
        whole = decode_audio(path, [-1.0], seconds=8.0)[0]
        for start_s in (-0.5, 0.0, 1.23456, 4.9999, 5.8):
            first = round(start_s * RATE_HZ) + RATE_HZ
            assert np.array_equal(decode_audio(path, [start_s])[0], whole[first : first + RATE_HZ])

    def test_overlapping_windows_in_any_order_equal_single_ones(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", sound=tone(300, 5, 44100))
        starts_s = [3.2, 0.1, 3.0, 0.1, 3.9]
        together = decode_audio(path, starts_s)
        for start_s, audio in zip(starts_s, together, strict=True):
            assert np.array_equal(audio, decode_audio(path, [start_s])[0])

    def test_a_seek_in_a_long_file_changes_nothing(self, tmp_path, monkeypatch):
        rng = np.random.default_rng(0)
        noise = rng.uniform(-0.5, 0.5, size=(1, 8000 * 60)).astype(np.float32)
        path = write_clip(tmp_path / "long.mp4", sound=noise, sample_rate_hz=8000)
        sought = decode_audio(path, [50.0, 3.0, 25.5])
        monkeypatch.setattr("crisscross.data.waveform.SEEK_BEYOND_S", 1e9)
        assert np.array_equal(sought, decode_audio(path, [50.0, 3.0, 25.5]))

    def test_zeros_outside_the_stream(self, tmp_path):
        path = write_clip(tmp_path / "a.mkv", sound=tone(440, 1, 16000), sample_rate_hz=16000, audio_codec="pcm_s16le")
        audio = decode_audio(path, [-0.5, 0.5, 7.0])
        assert (audio[0, :8000] == 0).all()
        assert np.abs(audio[0, 8000:]).max() > 0.4
        assert (audio[1, 8000:] == 0).all()
        assert (audio[2] == 0).all()

    def test_peaks_above_one_are_kept(self, tmp_path):
        loud = tone(440, 1, 16000, level=1.5)
        path = write_clip(tmp_path / "a.wav", sound=loud, sample_rate_hz=16000, audio_codec="pcm_f32le")
        assert decode_audio(path, [0.0]).max() == pytest.approx(1.5, abs=1e-3)

    def test_silence_is_sound(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", sound=np.zeros((1, 44100), np.float32))
        assert probe(path).audio_problem == ""
        assert (decode_audio(path, [0.0]) == 0).all()

    @pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
    def test_channels_are_averaged(self, tmp_path, layout, num_channels):
        sound = np.concatenate([tone(440, 1, 48000)] + [np.zeros((1, 48000), np.float32)] * (num_channels - 1))
        path = write_clip(tmp_path / "a.mkv", sound=sound, sample_rate_hz=48000, layout=layout, audio_codec="flac")
        assert probe(path).audio_channels == num_channels
        inner = decode_audio(path, [0.25], seconds=0.5)
        assert np.abs(inner).max() == pytest.approx(0.5 / num_channels, abs=1e-3)

    @pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
    def test_sample_formats(self, tmp_path, codec):
        path = write_clip(tmp_path / "a.wav", sound=tone(440, 1, 16000), sample_rate_hz=16000, audio_codec=codec)
        tolerance = 0.01 if codec == "pcm_u8" else 1e-4
        assert np.abs(decode_audio(path, [0.0])[0] - tone(440, 1, 16000)[0]).max() < tolerance

    def test_sound_that_is_not_finite_is_refused(self, tmp_path):
        sound = tone(440, 1, 16000)
        sound[0, 8000] = np.nan
        path = write_clip(tmp_path / "a.wav", sound=sound, sample_rate_hz=16000, audio_codec="pcm_f32le")
        assert probe(path).audio_problem == "the sound holds values that are not finite"
        with pytest.raises(DecodeError, match="not finite"):
            decode_audio(path, [0.0])


class TestAlignment:
    @pytest.mark.parametrize(("video_start_s", "audio_start_s"), [(0.0, 0.0), (2.0, 0.0), (0.0, 1.5), (0.8, 0.4)])
    def test_picture_and_sound_of_one_moment_come_together(self, tmp_path, video_start_s, audio_start_s):
        event_s = 2.6  # a click, and the picture that is shown from then on
        times_s = even_times_s(100, 25, start_s=video_start_s)
        click = impulses([event_s - audio_start_s], 4, 48000)
        path = write_clip(
            tmp_path / "a.mkv",
            times_s=times_s,
            sound=click,
            sample_rate_hz=48000,
            audio_start_s=audio_start_s,
            audio_codec="pcm_s16le",
            ticks_per_s=1000,
        )
        found = probe(path)
        assert found.video_start_s == pytest.approx(video_start_s, abs=1e-3)
        assert found.video_end_s == pytest.approx(times_s[-1] + 0.04, abs=2e-3)
        assert found.audio_start_s == pytest.approx(audio_start_s, abs=1e-3)
        assert found.audio_end_s == pytest.approx(audio_start_s + 4, abs=2e-3)
        video, audio = decode_windows(
            path,
            video_starts_s=[event_s, 2.2],
            num_frames=8,
            frame_rate_hz=16,
            canvas=(24, 40),
            audio_starts_s=[2.5, 2.55],
            audio_seconds=0.5,
            sample_rate_hz=RATE_HZ,
        )
        assert read_numbers(video)[0, 0] == nearest_numbers(times_s, event_s)[0]
        for waveform, delay_s in zip(audio, (0.1, 0.05), strict=True):
            assert abs(int(np.abs(waveform).argmax()) - delay_s * RATE_HZ) <= 1

    def test_both_streams_at_once_equal_each_alone(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25), sound=tone(440, 4, 44100))
        video, audio = decode_windows(
            path,
            video_starts_s=[2.0, 0.0],
            num_frames=8,
            frame_rate_hz=16,
            canvas=None,
            audio_starts_s=[1.0],
            audio_seconds=1,
            sample_rate_hz=RATE_HZ,
        )
        assert np.array_equal(video, decode_video(path, [2.0, 0.0]))
        assert np.array_equal(audio, decode_audio(path, [1.0]))

    def test_one_opening_serves_both_views_and_both_streams(self, tmp_path, monkeypatch):
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25), sound=tone(440, 4, 44100))
        openings = []
        original = decode_module.open_media
        monkeypatch.setattr(decode_module, "open_media", lambda name: openings.append(name) or original(name))
        decode_windows(
            path,
            video_starts_s=[2.0, 0.3],
            num_frames=8,
            frame_rate_hz=16,
            canvas=None,
            audio_starts_s=[1.0, 2.0],
            audio_seconds=1,
            sample_rate_hz=RATE_HZ,
        )
        assert len(openings) == 1


class TestDamage:
    @pytest.fixture
    def damaged(self, tmp_path) -> Path:
        """A clip in which the packets of pictures 40 to 43 are noise; key frames are 0, 25, 50, ..."""
        whole = write_clip(
            tmp_path / "whole.mp4", times_s=even_times_s(125, 25), key_frame_every=25, video_options={"bf": "0"}
        )
        content = bytearray(whole.read_bytes())
        with av.open(str(whole)) as container:
            entries = list(container.streams.video[0].index_entries)
        for entry in entries[40:44]:
            content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
        path = tmp_path / "damaged.mp4"
        path.write_bytes(content)
        return path

    def test_a_window_on_damage_names_the_file(self, damaged):
        for start_s in (40 / 25, 1.2, 46 / 25):
            with pytest.raises(DecodeError, match=r"damaged\.mp4: does not decode at .* s: .+") as caught:
                decode_video(damaged, [start_s])
            assert "\n" not in str(caught.value)

    def test_windows_beside_the_damage_are_served(self, damaged):
        assert read_numbers(decode_video(damaged, [0.5, 2.0, 4.0]))[:, 0].tolist() == [12, 50, 100]

    def test_thorough_probing_finds_damage_anywhere(self, damaged):
        assert probe(damaged, thorough=True).video_problem.startswith("does not decode after 1.")

    def test_the_error_survives_the_way_out_of_a_worker(self):
        error = DecodeError.about("a b.mp4", "no audio stream")
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.reason) == ("a b.mp4: no audio stream", "no audio stream")
        assert isinstance(type(error)("one argument, as PyTorch raises it again"), DecodeError)

    def test_damaged_sound_within_and_beside_a_window(self, tmp_path):
        whole = write_clip(tmp_path / "whole.mp4", sound=tone(440, 8, 44100))
        content = bytearray(whole.read_bytes())
        with av.open(str(whole)) as container:
            entries = list(container.streams.audio[0].index_entries)
        for entry in entries[170:175]:  # 23 ms each: near 4 s
            content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(content)
        assert probe(broken).audio_problem.startswith("the sound does not decode after 3.9")
        with pytest.raises(DecodeError, match=r"broken\.mp4: the sound does not decode at 3\.9"):
            decode_audio(broken, [3.5])
        assert np.array_equal(decode_audio(broken, [0.5, 6.5]), decode_audio(whole, [0.5, 6.5]))


class TestFiles:
    @pytest.mark.parametrize(
        "name",
        ["-v.mp4", "http:x.mp4", "a b 'c' \"d\" [e] #1 &;~@!().mp4", "名前é.mp4", "%03d.mp4", "concat:a|b.mp4"],
    )
    def test_awkward_names(self, tmp_path, monkeypatch, name):
        write_clip(tmp_path / "plain.mp4", times_s=even_times_s(10, 25)).rename(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        assert read_numbers(decode_video(Path(name), [0.0], num_frames=2)).tolist() == [[0, 2]]
        assert probe(name).video_problem == ""

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "file missing"),
            (b"", r"empty file \(0 bytes\)"),
            (b"<html>not found</html>" * 10, "cannot open: Invalid data"),
            (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "cannot open|no video stream"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, content, reason):
        path = tmp_path / "bad.mp4"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DecodeError, match=rf"bad\.mp4: ({reason})"):
            decode_video(path, [0.0])
        with pytest.raises(DecodeError, match=reason):
            probe(path)

    def test_a_missing_stream_is_named(self, tmp_path):
        silent = write_clip(tmp_path / "silent.mp4", times_s=even_times_s(10, 25))
        assert probe(silent).audio_problem == "no audio stream"
        with pytest.raises(DecodeError, match=r"silent\.mp4: no audio stream"):
            decode_audio(silent, [0.0])
        blind = write_clip(tmp_path / "blind.m4a", sound=tone(440, 1, 44100))
        assert probe(blind).video_problem == "no video stream"
        with pytest.raises(DecodeError, match="no video stream"):
            decode_video(blind, [0.0])

    def test_a_stream_without_samples_is_no_sound(self, tmp_path):
        path = write_clip(tmp_path / "a.wav", sound=np.zeros((1, 1), np.float32), audio_codec="pcm_s16le")
        path.write_bytes(path.read_bytes()[:-2])
        assert probe(path).audio_problem
        with pytest.raises(DecodeError):
            decode_audio(path, [0.0])

    def test_a_stream_without_timestamps(self, tmp_path):
        path = write_clip(tmp_path / "raw.h264", times_s=even_times_s(50, 25))
        assert probe(path).video_problem == "no timestamps"
        with pytest.raises(DecodeError, match="no timestamps"):
            decode_video(path, [0.0])

    def test_the_first_of_several_streams_is_taken(self, tmp_path):
        path = tmp_path / "two.mkv"
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
            for stream, frequency_hz in zip(streams, (440, 1000), strict=True):
                samples = (tone(frequency_hz, 1, 16000) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                frame.sample_rate, frame.pts = 16000, 0
                for packet in stream.encode(frame) + stream.encode(None):
                    container.mux(packet)
        assert np.abs(decode_audio(path, [0.0])[0] - tone(440, 1, 16000)[0]).max() < 1e-3

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"video_starts_s": [float("nan")]}, "must be finite"),
            ({"num_frames": 0}, "num_frames and frame_rate_hz must be positive, got 0"),
            ({"frame_rate_hz": 0.0}, "must be positive"),
            ({"audio_seconds": 0.0}, "got 0 samples"),
            ({"canvas": (0, 10)}, "canvas must be"),
        ],
    )
    def test_impossible_settings(self, tmp_path, wrong, message):
        right = {
            "video_starts_s": [0.0],
            "num_frames": 8,
            "frame_rate_hz": 16.0,
            "canvas": None,
            "audio_starts_s": [0.0],
            "audio_seconds": 1.0,
            "sample_rate_hz": RATE_HZ,
        }
        with pytest.raises(ValueError, match=message):
            decode_windows(tmp_path / "never_opened.mp4", **{**right, **wrong})


def test_importing_does_not_bring_torch_or_pandas():
    code = "import sys, crisscross.data.decode, crisscross.data.manifest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "pandas", "scipy"}.isdisjoint(loaded)


def _real_files(*patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(Path(REAL_DATA or "none").glob(pattern))]


# What torture.csv suggests. Damaged files and those without timestamps or pictures are rejected.
NO_PICTURE = {
    "corrupted_packet.mp4": "does not decode",
    "truncated_moov_front.mp4": "does not decode",
    "tiny.avi": "holds no pictures",
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
            assert NO_PICTURE.get(name, "") in found.video_problem, name
            assert bool(found.video_problem) == (name in NO_PICTURE), name
            if not found.video_problem:
                assert found.video_end_s > found.video_start_s
                span_s = found.video_end_s - found.video_start_s
                starts_s = [found.video_start_s, found.video_start_s + span_s / 2]
                assert decode_video(folder / name, starts_s, canvas=(32, 40)).shape == (2, 8, 32, 40, 3)
            if not found.audio_problem:
                starts_s = [found.audio_start_s, found.audio_end_s - 0.5]
                assert np.isfinite(decode_audio(folder / name, starts_s)).all()

    def test_what_the_odd_ones_hold(self):
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
        """An independent reference: decode all, sort the times, take the nearest, scale. Seeks must not show."""
        from crisscross.data.geometry import pixel_aspect, to_rgb

        rng = np.random.default_rng(0)
        files = _real_files("video/clips/*.mp4")[::7] + _real_files("video/ucf101/*/*.avi")[::14]
        files += _real_files("video/hmdb51/*/*.avi", "video/torture/*.m[kpo][vg4]", "video/torture/*.ts")
        skipped = set(NO_PICTURE) | set(CANNOT_OPEN) | {"bit_rot.mp4"}
        for path in files:
            if path.name in skipped or path.name.startswith("av1"):
                continue
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                aspect = pixel_aspect(stream)
                times_s, pictures = [], []
                for frame in container.decode(stream):
                    times_s.append(frame.time)
                    pictures.append(to_rgb(frame, aspect, (24, 32)))
            times_s.sort()
            starts_s = sorted(rng.uniform(times_s[0], times_s[-1], size=2), reverse=True)
            video = decode_video(path, starts_s, canvas=(24, 32))
            for window, start_s in zip(video, starts_s, strict=True):
                expected = [pictures[number] for number in nearest_numbers(times_s, start_s)]
                assert np.array_equal(window, np.stack(expected)), path.name
