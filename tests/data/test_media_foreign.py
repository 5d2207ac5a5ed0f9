"""Files that other tools make: wrong times, several tracks, clocks that start again, bytes behind the last frame."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from crisscross.data.media.decode import DecodeError, decode_windows, probe
from crisscross.data.media.display_order import DisplayOrder
from crisscross.data.media.whole import decode_whole_video
from tests.data.clips import even_times_s, read_numbers, tone, write_clip
from tests.data.windows import RATE_HZ, decode_audio, decode_video, nearest_numbers

CHANGED = "the file's clock jumps from"


def noise(seconds: float, rate_hz: int) -> np.ndarray:
    """Return mono noise below 500 Hz, which every codec keeps and which has one place where it fits."""
    values = np.random.default_rng(0).uniform(-0.3, 0.3, size=round(seconds * 500))
    times_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.interp(times_s, np.arange(len(values)) / 500, values).astype(np.float32)[None]


def remux(source: Path, target: Path, change: Callable[[av.Packet], None]) -> Path:
    """Copy the packets of a file into another, each changed."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                change(packet)
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def use_decoding_times(packet: av.Packet) -> None:
    packet.pts = packet.dts


class TestAudioSeeks:
    @pytest.mark.parametrize("codec", ["adpcm_ms", "adpcm_ima_wav", "adpcm_yamaha", "pcm_s16le", "pcm_mulaw", "ac3"])
    def test_a_window_far_into_a_wav_is_the_sound_of_that_time(self, tmp_path, codec):
        rate_hz = 48000 if codec == "ac3" else 22050
        sound = noise(40, rate_hz)
        path = write_clip(tmp_path / "a.wav", waveform=sound, sample_rate_hz=rate_hz, audio_codec=codec)
        exact = write_clip(tmp_path / "a.mkv", waveform=sound, sample_rate_hz=rate_hz, audio_codec="pcm_s16le")
        for start_s in (20.0, 37.0):
            found, expected = decode_audio(path, [start_s])[0], decode_audio(exact, [start_s - 0.05], seconds=1.1)[0]
            best = int(np.correlate(expected, found, mode="valid").argmax())
            assert abs(best - 800) <= 100, "not within 6 ms"  # AC-3's encoder delay is 5.3 ms
            assert np.corrcoef(expected[best : best + RATE_HZ], found)[0, 1] > 0.95

    def test_a_wav_with_a_wrong_byte_rate(self, tmp_path):
        path = write_clip(tmp_path / "a.wav", waveform=noise(40, 8000), sample_rate_hz=8000, audio_codec="pcm_s16le")
        expected = decode_audio(path, [30.0])
        content = bytearray(path.read_bytes())
        assert struct.unpack_from("<I", content, 28) == (16000,)
        struct.pack_into("<I", content, 28, 12000)
        path.write_bytes(content)
        assert np.array_equal(decode_audio(path, [30.0]), expected)

    def test_pcm_is_sought(self, tmp_path, monkeypatch):
        seeks = []
        monkeypatch.setattr("crisscross.data.media.audio_seek.seek", lambda *arguments: seeks.append(arguments))
        path = write_clip(tmp_path / "a.wav", waveform=noise(40, 8000), sample_rate_hz=8000, audio_codec="pcm_s16le")
        decode_audio(path, [30.0])
        assert len(seeks) == 1

    @pytest.mark.parametrize("name", ["a.mp4", "a.mov", "flac.mp4", "alac.m4a", "pcm.mov"])
    @pytest.mark.parametrize("drift", [0, 0.0005, -0.0005, 0.003])
    def test_timestamps_that_drift(self, tmp_path, name, drift):
        """A window is the same slice of the whole, whether it is read alone, with others or without a seek."""
        codec = {"flac.mp4": "flac", "alac.m4a": "alac", "pcm.mov": "pcm_s16le"}.get(name, "aac")
        straight = write_clip(
            tmp_path / f"straight-{name}", waveform=tone(300, 60, 8000), sample_rate_hz=8000, audio_codec=codec
        )

        def stretch(packet: av.Packet) -> None:
            packet.pts = packet.dts = round(packet.pts * (1 + drift))

        path = remux(straight, tmp_path / name, stretch)
        whole = decode_audio(path, [0.0], seconds=59)[0]
        for starts_s in ([50.3], [3.0, 50.3], [1.0, 22.0, 50.3], [30.0, 50.3]):
            found = decode_audio(path, starts_s)
            for start_s, window in zip(starts_s, found, strict=True):
                first = round(start_s * RATE_HZ)
                expected = whole[first : first + RATE_HZ]
                if codec == "aac":  # noise of the decoder's own
                    assert np.abs(window - expected).max() < 1e-3, starts_s
                else:
                    assert np.array_equal(window, expected), starts_s

    @pytest.mark.parametrize(("name", "codec"), [("a.mp4", "ac3"), ("a.mp4", "libopus"), ("a.flac", "flac")])
    def test_codecs_that_are_read_from_the_start_give_the_same_bits(self, tmp_path, name, codec):
        path = write_clip(tmp_path / name, waveform=noise(40, 48000), sample_rate_hz=48000, audio_codec=codec)
        whole = decode_audio(path, [0.0], seconds=40)[0]
        assert np.array_equal(decode_audio(path, [2.0, 35.0])[1], whole[35 * RATE_HZ : 36 * RATE_HZ])

    def test_joined_flac_files_are_played_one_after_the_other(self, tmp_path):
        parts = [
            write_clip(tmp_path / f"{hz}.flac", waveform=tone(hz, s, 16000), sample_rate_hz=16000, audio_codec="flac")
            for hz, s in ((440, 30), (1000, 40))
        ]
        path = tmp_path / "joined.flac"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert probe(path).audio_end_s == pytest.approx(70, abs=0.01)
        for start_s, hz in ((5.0, 440), (25.0, 440), (35.0, 1000), (65.0, 1000)):
            assert np.abs(np.fft.rfft(decode_audio(path, [start_s])[0])).argmax() == hz


class TestDisplayOrder:
    @pytest.mark.parametrize(
        "options",
        [
            {"preset": "veryslow"},
            {"bf": "16", "b_strategy": "0"},
            {"preset": "veryslow", "x264-params": "open-gop=1:keyint=24:min-keyint=24"},
        ],
    )
    @pytest.mark.parametrize("copy", ["", "mkv", "mp4", "ts", "flv"])
    def test_h264_with_many_b_frames(self, tmp_path, options, copy):
        """Each frame is at its time: in AVI, which stores no times, and in copies, which have those of AVI."""
        path = write_clip(
            tmp_path / "a.avi", times_s=even_times_s(150, 25), ticks_per_s=25, key_frame_every=50, video_options=options
        )
        if copy:
            path = remux(path, tmp_path / f"copy.{copy}", use_decoding_times)
        assert probe(path, thorough=True).video_problem == ""
        start_s = probe(path).video_start_s
        for first in range(0, 150, 3):
            numbers = read_numbers(decode_video(path, [start_s + first / 25], num_frames=2, frame_rate_hz=25.0))
            assert numbers[0].tolist() == [first, min(first + 1, 149)]
        whole = np.concatenate(decode_video(path, [start_s], num_frames=150, frame_rate_hz=25.0))
        assert read_numbers(whole).tolist() == list(range(150))

    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    def test_mpeg4_copied_from_avi(self, tmp_path, suffix):
        options = {"bf": "8", "b_strategy": "0"}
        source = write_clip(
            tmp_path / "a.avi",
            times_s=even_times_s(120, 25),
            ticks_per_s=25,
            key_frame_every=24,
            video_codec="mpeg4",
            video_options=options,
        )
        path = remux(source, tmp_path / f"a{suffix}", use_decoding_times)
        for start_s in (0.4, 0.92, 1.9, 3.1):
            assert read_numbers(decode_video(path, [start_s]))[0].tolist() == nearest_numbers(
                even_times_s(120, 25), start_s
            )

    def test_the_whole_of_a_clip_has_the_same_order(self, tmp_path):
        path = write_clip(
            tmp_path / "a.avi", times_s=even_times_s(100, 25), ticks_per_s=25, video_options={"preset": "veryslow"}
        )
        whole = decode_whole_video(path, (48, 80))
        assert read_numbers(whole.frames).tolist() == list(range(100))
        assert np.allclose(np.diff(whole.times_s), 0.04)

    def test_stored_times_need_no_frames_beyond_the_window(self, tmp_path, monkeypatch):
        """Where times are those of display, two frames are decoded ahead."""
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25), video_options={"preset": "veryslow"})
        decoded: list[float] = []
        original = DisplayOrder.add

        def add(order, frame, time_s, entry) -> None:
            decoded.append(time_s)
            original(order, frame, time_s, entry)

        monkeypatch.setattr(DisplayOrder, "add", add)
        decode_video(path, [0.0], num_frames=2, frame_rate_hz=25.0)
        assert len(decoded) <= 2 + 2 + 1


def write_both(path: Path, seconds: int, start_s: float = 0.0, **options) -> Path:
    """Write a clip with video and audio that start at a time."""
    return write_clip(
        path,
        times_s=even_times_s(seconds * 25, 25, start_s=start_s),
        waveform=tone(440, seconds, 44100),
        audio_start_s=start_s,
        **options,
    )


class TestClocks:
    @pytest.mark.parametrize("suffix", [".ts", ".mpg", ".mkv"])
    @pytest.mark.parametrize("lengths_s", [(3, 5), (5, 3)])
    def test_joined_files_are_rejected(self, tmp_path, suffix, lengths_s):
        options = {"ticks_per_s": 1000}
        if suffix == ".mpg":
            options = {"ticks_per_s": 25, "video_codec": "mpeg2video", "audio_codec": "mp2"}
        parts = [write_both(tmp_path / f"{k}{suffix}", s, **options) for k, s in enumerate(lengths_s)]
        path = tmp_path / f"joined{suffix}"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        for thorough in (False, True):
            found = probe(path, thorough=thorough)
            assert CHANGED in found.video_problem
            assert CHANGED in found.audio_problem
        last_s = probe(parts[0]).video_start_s + lengths_s[0] - 1
        assert np.array_equal(decode_video(path, [last_s]), decode_video(parts[0], [last_s]))
        for decode in (decode_video, decode_audio):
            with pytest.raises(DecodeError, match=CHANGED):
                decode(path, [last_s + 2.0])

    def test_a_clock_that_jumps_forward_is_rejected(self, tmp_path):
        parts = [write_both(tmp_path / f"{k}.ts", 3, start_s=start_s) for k, start_s in enumerate((0.0, 100.0))]
        path = tmp_path / "joined.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        found = probe(path)
        assert CHANGED in found.video_problem
        assert CHANGED in found.audio_problem

    def test_a_clock_that_goes_on_is_accepted(self, tmp_path):
        parts = [write_both(tmp_path / f"{k}.ts", 3, start_s=start_s) for k, start_s in enumerate((0.0, 3.0))]
        path = tmp_path / "joined.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        found = probe(path)
        assert (found.video_problem, found.audio_problem) == ("", "")
        assert found.video_end_s - found.video_start_s == pytest.approx(6, abs=0.1)

    def test_33_bits_that_wrap_around_are_one_clock(self, tmp_path):
        plain = write_both(tmp_path / "plain.ts", 4)

        def shift(packet: av.Packet) -> None:
            packet.pts, packet.dts = packet.pts + 2**33 - 180_000, packet.dts + 2**33 - 180_000

        path = remux(plain, tmp_path / "wraps.ts", shift)
        found = probe(path)
        assert (found.video_problem, found.audio_problem) == ("", "")
        assert found.video_end_s - found.video_start_s == pytest.approx(4, abs=0.1)
        starts_s = [found.video_start_s + 0.5, found.video_start_s + 3]
        assert read_numbers(decode_video(path, starts_s, num_frames=1))[:, 0].tolist() == [12, 75]

    def test_sound_alone_is_played_on(self, tmp_path):
        parts = [
            write_clip(tmp_path / f"{hz}.ogg", waveform=tone(hz, 5, 48000), sample_rate_hz=48000, audio_codec="libopus")
            for hz in (440, 1000)
        ]
        path = tmp_path / "joined.ogg"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert probe(path).audio_end_s == pytest.approx(10, abs=0.05)
        for start_s, hz in ((3.0, 440), (7.0, 1000)):
            assert np.abs(np.fft.rfft(decode_audio(path, [start_s])[0])).argmax() == hz


TAILS = {
    "zeros": b"\0" * 4096,
    "a tag": b"TAG" + b"a" * 125,
    "a page": b"<html>not a sound</html>" * 50,
    "a byte": b"\0",
    "ones": b"\xff" * 3000,
}


class TestTails:
    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize(
        ("name", "codec"),
        [
            ("a.mp3", "libmp3lame"),
            ("a.mp2", "mp2"),
            ("a.aac", "aac"),
            ("a.ac3", "ac3"),
            ("a.eac3", "eac3"),
            ("a.flac", "flac"),
            ("a.ogg", "libopus"),
            ("a.wav", "pcm_s16le"),
            ("a.mp4", "aac"),
        ],
    )
    def test_bytes_behind_the_last_frame_are_no_damage(self, tmp_path, name, codec, tail):
        path = write_clip(tmp_path / name, waveform=tone(440, 3, 48000), sample_rate_hz=48000, audio_codec=codec)
        before, windows = probe(path), decode_audio(path, [0.5, 1.9])
        path.write_bytes(path.read_bytes() + TAILS[tail])
        found = probe(path)
        assert found.audio_problem == ""
        assert found.audio_end_s == pytest.approx(before.audio_end_s, abs=0.033)  # AC-3 may lose its last frame
        assert np.array_equal(decode_audio(path, [0.5, 1.9]), windows)

    def test_bytes_behind_a_transport_stream(self, tmp_path):
        path = write_both(tmp_path / "a.ts", 3)
        before = probe(path)
        path.write_bytes(path.read_bytes() + b"\0" * 100_000)
        assert probe(path) == before

    def test_noise_in_the_middle_is_damage(self, tmp_path):
        path = write_clip(tmp_path / "a.mp3", waveform=tone(440, 6, 44100), audio_codec="libmp3lame")
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"\0" * 4096 + content[middle:])
        assert probe(path).audio_problem.startswith("the audio does not decode after 3.")

    def test_a_second_half_of_noise_is_damage(self, tmp_path):
        path = write_clip(tmp_path / "a.aac", waveform=noise(6, 44100), audio_codec="aac")
        content = bytearray(path.read_bytes())
        for at in range(len(content) // 2, len(content)):  # headers stay
            if content[max(0, at - 7) : at + 8].find(b"\xff\xf1") < 0:
                content[at] ^= 0x55
        path.write_bytes(content)
        assert probe(path).audio_problem.startswith("the audio does not decode after 3.0")


class TestTracks:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
    @pytest.mark.parametrize("default", [0, 1])
    def test_the_default_audio_track_is_used(self, tmp_path, suffix, default):
        path = tmp_path / f"a{suffix}"
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
            for number, stream in enumerate(streams):
                stream.disposition = Disposition.default if number == default else Disposition(0)
            for first in range(0, 96_000, 1024):
                for stream, hz in zip(streams, (440, 1000), strict=True):
                    values = np.sin(2 * np.pi * hz * np.arange(first, first + 1024) / 48000).astype(np.float32)[None]
                    frame = av.AudioFrame.from_ndarray(values * 0.5, format="fltp", layout="mono")
                    frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode(None))
        assert np.abs(np.fft.rfft(decode_audio(path, [0.5])[0])).argmax() == (440, 1000)[default]

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    @pytest.mark.parametrize("default", [0, 1])
    def test_the_default_video_track_is_used(self, tmp_path, suffix, default):
        path = tmp_path / f"a{suffix}"
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
            for number, stream in enumerate(streams):
                stream.width, stream.height, stream.pix_fmt = 64, (32, 48)[number], "yuv420p"
                stream.disposition = Disposition.default if number == default else Disposition(0)
            for pts in range(50):
                for stream in streams:
                    frame = av.VideoFrame(stream.width, stream.height, "yuv420p")
                    frame.pts, frame.time_base = pts, Fraction(1, 25)
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode(None))
        assert probe(path).height == (32, 48)[default]
        assert decode_video(path, [0.5]).shape[2] == (32, 48)[default]


def test_pictures_and_sound_of_one_call_are_those_of_two(tmp_path):
    path = write_both(tmp_path / "a.ts", 3)
    options = {"num_frames": 8, "frame_rate_hz": 16.0, "canvas": None, "audio_seconds": 1.0, "sample_rate_hz": RATE_HZ}
    video, audio = decode_windows(path, video_starts_s=[1.0], audio_starts_s=[1.0], **options)
    assert np.array_equal(video, decode_video(path, [1.0]))
    assert np.array_equal(audio, decode_audio(path, [1.0]))
