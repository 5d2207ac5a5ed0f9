"""Audio windows of real container files compared with known content."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.data.media.decode import DecodeError, probe
from tests.data.clips import even_times_s, tone, write_clip
from tests.data.windows import RATE_HZ, decode_audio


class TestAudio:
    @pytest.mark.parametrize("sample_rate_hz", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
    def test_a_tone_comes_out_exact_at_every_rate(self, tmp_path, sample_rate_hz):
        path = write_clip(
            tmp_path / "a.mkv",
            waveform=tone(440, 4, sample_rate_hz),
            sample_rate_hz=sample_rate_hz,
            audio_codec="pcm_s16le",
        )
        expected = tone(440, 4, RATE_HZ)[0]
        audio = decode_audio(path, [1.0, 2.5])
        assert audio.shape == (2, RATE_HZ)
        assert audio.dtype == np.float32
        assert np.abs(audio[0] - expected[16000:32000]).max() < 1e-4
        assert np.abs(audio[1] - expected[40000:56000]).max() < 1e-4

    @pytest.mark.parametrize(
        "codec", ["adpcm_ms", "adpcm_ima_wav", "mp3", "pcm_mulaw", "pcm_alaw", "pcm_s16le", "pcm_f32le"]
    )
    def test_a_late_window_of_a_wav_has_its_own_place(self, tmp_path, codec):
        """A rising tone; WAV has no times, and the bytes per second of its header are wrong for most codecs."""
        times_s = np.arange(40 * RATE_HZ) / RATE_HZ
        rising = (0.5 * np.sin(2 * np.pi * (200 + 40 * times_s) * times_s)).astype(np.float32)[None]
        path = write_clip(tmp_path / "a.wav", waveform=rising, sample_rate_hz=RATE_HZ, audio_codec=codec)
        from_the_start = decode_audio(path, [0.0, 10.0, 20.0, 37.0])
        for row, start_s in ((2, 20.0), (3, 37.0)):
            assert np.array_equal(decode_audio(path, [start_s])[0], from_the_start[row])
        if codec != "mp3":  # its encoder adds a delay
            assert np.abs(from_the_start[2] - rising[0, 20 * RATE_HZ : 21 * RATE_HZ]).max() < 0.1

    def test_no_alias_of_what_lies_above_the_new_band(self, tmp_path):
        path = write_clip(tmp_path / "a.mkv", waveform=tone(9000, 3, 44100), audio_codec="pcm_s16le")
        assert np.abs(decode_audio(path, [1.0])).max() < 1e-3

    def test_a_window_is_a_slice_of_the_whole_bit_for_bit(self, tmp_path):
        rng = np.random.default_rng(0)
        noise = rng.uniform(-0.5, 0.5, size=(2, 44100 * 6)).astype(np.float32)
        path = write_clip(tmp_path / "a.mp4", waveform=noise, times_s=even_times_s(150, 25))
        whole = decode_audio(path, [-1.0], seconds=8.0)[0]
        for start_s in (-0.5, 0.0, 1.23456, 4.9999, 5.8):
            first = round(start_s * RATE_HZ) + RATE_HZ
            assert np.array_equal(decode_audio(path, [start_s])[0], whole[first : first + RATE_HZ])

    def test_overlapping_windows_in_any_order_equal_single_ones(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", waveform=tone(300, 5, 44100))
        starts_s = [3.2, 0.1, 3.0, 0.1, 3.9]
        together = decode_audio(path, starts_s)
        for start_s, audio in zip(starts_s, together, strict=True):
            assert np.array_equal(audio, decode_audio(path, [start_s])[0])

    def test_a_seek_in_a_long_file_changes_nothing(self, tmp_path, monkeypatch):
        rng = np.random.default_rng(0)
        noise = rng.uniform(-0.5, 0.5, size=(1, 8000 * 60)).astype(np.float32)
        path = write_clip(tmp_path / "long.mp4", waveform=noise, sample_rate_hz=8000)
        sought = decode_audio(path, [50.0, 3.0, 25.5])
        monkeypatch.setattr("crisscross.data.media.audio.SEEK_BEYOND_S", 1e9)
        assert np.array_equal(sought, decode_audio(path, [50.0, 3.0, 25.5]))

    def test_zeros_outside_the_stream(self, tmp_path):
        path = write_clip(
            tmp_path / "a.mkv", waveform=tone(440, 1, 16000), sample_rate_hz=16000, audio_codec="pcm_s16le"
        )
        audio = decode_audio(path, [-0.5, 0.5, 7.0])
        assert (audio[0, :8000] == 0).all()
        assert np.abs(audio[0, 8000:]).max() > 0.4
        assert (audio[1, 8000:] == 0).all()
        assert (audio[2] == 0).all()

    def test_peaks_above_one_are_kept(self, tmp_path):
        loud = tone(440, 1, 16000, level=1.5)
        path = write_clip(tmp_path / "a.wav", waveform=loud, sample_rate_hz=16000, audio_codec="pcm_f32le")
        assert decode_audio(path, [0.0]).max() == pytest.approx(1.5, abs=1e-3)

    def test_silence_is_audio(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", waveform=np.zeros((1, 44100), np.float32))
        assert probe(path).audio_problem == ""
        assert (decode_audio(path, [0.0]) == 0).all()

    @pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
    def test_channels_are_averaged(self, tmp_path, layout, num_channels):
        waveform = np.concatenate([tone(440, 1, 48000)] + [np.zeros((1, 48000), np.float32)] * (num_channels - 1))
        path = write_clip(
            tmp_path / "a.mkv", waveform=waveform, sample_rate_hz=48000, layout=layout, audio_codec="flac"
        )
        assert probe(path).audio_channels == num_channels
        inner = decode_audio(path, [0.25], seconds=0.5)
        assert np.abs(inner).max() == pytest.approx(0.5 / num_channels, abs=1e-3)

    @pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
    def test_sample_formats(self, tmp_path, codec):
        path = write_clip(tmp_path / "a.wav", waveform=tone(440, 1, 16000), sample_rate_hz=16000, audio_codec=codec)
        tolerance = 0.01 if codec == "pcm_u8" else 1e-4
        assert np.abs(decode_audio(path, [0.0])[0] - tone(440, 1, 16000)[0]).max() < tolerance

    def test_audio_that_is_not_finite_is_an_error(self, tmp_path):
        waveform = tone(440, 1, 16000)
        waveform[0, 8000] = np.nan
        path = write_clip(tmp_path / "a.wav", waveform=waveform, sample_rate_hz=16000, audio_codec="pcm_f32le")
        assert probe(path).audio_problem == "the audio holds values that are not finite"
        with pytest.raises(DecodeError, match="not finite"):
            decode_audio(path, [0.0])
