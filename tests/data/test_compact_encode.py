"""The compact copy of one clip: same times and audio, and frames as training decodes them."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from crisscross.data.media.probe import probe
from crisscross.data.media.streams import DecodeError
from crisscross.data.prepare.compact_encode import CompactSettings, Streams, copy_size, ticks_of, write_copy
from tests.data.clips import even_times_s, impulses, read_numbers, tone, write_clip
from tests.data.copies import SETTINGS, copied, frames, peak_ratio_db, picture_times_s, sound, streams_of


class TestOneClip:
    @pytest.mark.parametrize(
        ("suffix", "video_start_s", "audio_start_s"),
        [(".mp4", 0, 0), (".mp4", 2.04, 0), (".mp4", 0, 1.98), (".mkv", 0.5, 0.25), (".ts", 0.1, 0.3)],
    )
    def test_picture_and_sound_stay_where_they_were(self, tmp_path, suffix, video_start_s, audio_start_s):
        beep_s = audio_start_s + 0.7
        source = write_clip(
            tmp_path / f"a{suffix}",
            times_s=even_times_s(30, 25, start_s=video_start_s),
            waveform=impulses([0.7], 1.2, 44100) + tone(300, 1.2, 44100, level=0.05),
            audio_start_s=audio_start_s,
            audio_codec="flac" if suffix == ".mkv" else "aac",
        )
        copy = copied(source)
        np.testing.assert_allclose(picture_times_s(copy), picture_times_s(source), atol=1e-6)
        before, after = streams_of(source), streams_of(copy)
        for name in ("video_start_s", "video_end_s", "audio_start_s", "audio_end_s"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-3), name
        one, other = (sound(path, before.audio_start_s, 1.1) for path in (source, copy))
        np.testing.assert_allclose(other, one, atol=2**-15)  # to the last of 16 bits
        if suffix != ".ts":
            loudest = np.abs(sound(copy, beep_s - 0.1, 0.2)).argmax()
            assert loudest / 16000 == pytest.approx(0.1, abs=1e-3)
        starts_s = [before.video_start_s, before.video_start_s + 0.53]
        assert (read_numbers(frames(copy, starts_s, None)) == read_numbers(frames(source, starts_s, None))).all()

    def test_pictures_look_as_training_would_have_seen_them(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(30, 25), height=96, width=160)
        copy = copied(source, CompactSettings(short_side_px=48, crf=12))
        one, other = frames(source, [0.1], (48, 80)), frames(copy, [0.1], None)
        assert one.shape == other.shape
        assert peak_ratio_db(one, other) > 32

    def test_colours_keep_their_values(self, tmp_path):
        source = tmp_path / "a.mkv"
        with av.open(str(source), "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
            for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 10, 10)):
                picture = np.broadcast_to(np.uint8(colour), (48, 64, 3))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(stream.encode())
        copy = copied(source, CompactSettings(short_side_px=48, crf=10))
        one, other = (frames(path, [0.0], None).astype(int).mean(axis=(2, 3)) for path in (source, copy))
        assert np.abs(one - other).max() < 6

    def test_key_frames_come_as_asked_and_nothing_waits_for_a_later_picture(self, tmp_path):
        copy = copied(write_clip(tmp_path / "a.mp4", times_s=even_times_s(50, 25), video_options={"bf": "3"}))
        with av.open(str(copy)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36, 48]
        assert all(packet.pts == packet.dts for packet in packets)

    def test_turned_and_stretched_as_shown(self, tmp_path):
        turned = write_clip(tmp_path / "a.mp4", times_s=even_times_s(5, 25), height=48, width=80, rotation=90)
        wide = write_clip(tmp_path / "b.mp4", times_s=even_times_s(5, 25), pixel_aspect=Fraction(2, 1))
        for source, size in ((turned, (54, 32)), (wide, (32, 106))):
            copy = copied(source)
            found = probe(copy)
            assert (found.height, found.width) == size
            assert peak_ratio_db(frames(source, [0], size), frames(copy, [0], None)) > 25

    def test_a_clip_that_starts_before_zero_is_moved_as_a_whole(self, tmp_path):
        source = write_clip(tmp_path / "a.mkv", times_s=even_times_s(25, 25), waveform=impulses([0.5], 1, 48000),
                            sample_rate_hz=48000, audio_codec="flac")  # fmt: skip
        before = streams_of(source)
        early = Streams(before.video_start_s, before.video_end_s, -0.0311, before.audio_end_s)
        copy = tmp_path / "copy.mp4"
        write_copy(source, copy, early, SETTINGS)
        shift_s = early.shift_s(16000)
        assert 0.0311 <= shift_s < 0.0312
        np.testing.assert_allclose(np.subtract(picture_times_s(copy), picture_times_s(source)), shift_s, atol=1e-5)
        assert np.abs(sound(copy, 0.0, 0.9)).argmax() == round((0.5 + shift_s) * 16000)

    def test_no_sound_stays_no_sound_and_no_picture_becomes_flac(self, tmp_path):
        silent = copied(write_clip(tmp_path / "a.mp4", times_s=even_times_s(9, 25)))
        assert probe(silent).audio_problem == "no audio stream"
        heard = write_clip(tmp_path / "b.wav", waveform=tone(440, 1, 44100), audio_codec="pcm_s16le")
        copy = tmp_path / "b.flac"
        write_copy(heard, copy, streams_of(heard), SETTINGS)
        with av.open(str(copy)) as container:
            assert container.format.name == "flac"
            assert container.streams.audio[0].rate == 16000
        np.testing.assert_allclose(sound(copy, 0, 1), sound(heard, 0, 1), atol=2**-15)

    def test_the_same_clip_gives_the_same_bytes(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(25, 25), waveform=tone(440, 1, 44100))
        assert copied(source).read_bytes() == copied(source).read_bytes()

    def test_a_damaged_clip_is_an_error_that_says_where(self, tmp_path):
        source = write_clip(tmp_path / "a.mp4", times_s=even_times_s(50, 25), waveform=tone(440, 2, 44100))
        content = bytearray(source.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        streams = streams_of(source)
        source.write_bytes(content)
        with pytest.raises(DecodeError, match=r"a\.mp4: .*does not decode"):
            write_copy(source, tmp_path / "copy.mp4", streams, SETTINGS)

    def test_sizes(self):
        assert copy_size(256, 340, 128) == (128, 170)
        assert copy_size(340, 256, 128) == (170, 128)
        assert copy_size(241, 321, 256) == (240, 320)  # never larger, even
        assert copy_size(1, 1, 128) == (2, 2)

    def test_clocks(self):
        assert ticks_of(Fraction(1, 12800)) == 102400
        assert ticks_of(Fraction(1001, 30000)) == 90000
        assert ticks_of(Fraction(1, 10**9)) == 90000
        assert ticks_of(None) == 90000


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"short_side_px": 127}, "got short_side_px=127; allowed: even, 16 to 2160"),
        ({"key_frame_every": 0}, "got key_frame_every=0; allowed: 1 to 600"),
        ({"crf": 60}, "got crf=60; allowed: 0 to 51"),
        ({"preset": "hasty"}, "got preset=hasty; allowed: ultrafast"),
        ({"sample_rate_hz": 1}, "got sample_rate_hz=1; allowed: 8000 to 48000"),
    ],
)
def test_impossible_settings(setting, text):
    with pytest.raises(ValueError, match=text):
        CompactSettings(**setting)
