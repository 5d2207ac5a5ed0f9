"""Video and audio of one file on one timeline; damage, missing streams and wrong arguments are errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from crisscross.data.media import decode as decode_module
from crisscross.data.media.decode import DecodeError, decode_windows, probe
from tests.data.clips import even_times_s, impulses, read_numbers, tone, write_clip
from tests.data.windows import RATE_HZ, decode_audio, decode_video, nearest_numbers


class TestAlignment:
    @pytest.mark.parametrize(("video_start_s", "audio_start_s"), [(0.0, 0.0), (2.0, 0.0), (0.0, 1.5), (0.8, 0.4)])
    def test_video_and_audio_are_aligned(self, tmp_path, video_start_s, audio_start_s):
        event_s = 2.6  # a click, and the frame that is shown from then on
        times_s = even_times_s(100, 25, start_s=video_start_s)
        click = impulses([event_s - audio_start_s], 4, 48000)
        path = write_clip(
            tmp_path / "a.mkv",
            times_s=times_s,
            waveform=click,
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
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25), waveform=tone(440, 4, 44100))
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
        path = write_clip(tmp_path / "a.mp4", times_s=even_times_s(100, 25), waveform=tone(440, 4, 44100))
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
        """A clip in which the packets of frames 40 to 43 are noise; key frames are 0, 25, 50, ..."""
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

    def test_windows_next_to_the_damage_decode(self, damaged):
        assert read_numbers(decode_video(damaged, [0.5, 2.0, 4.0]))[:, 0].tolist() == [12, 50, 100]

    def test_thorough_probing_finds_damage_anywhere(self, damaged):
        assert probe(damaged, thorough=True).video_problem.startswith("does not decode after 1.")

    def test_the_error_can_be_pickled(self):
        error = DecodeError.about("a b.mp4", "no audio stream")
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.reason) == ("a b.mp4: no audio stream", "no audio stream")
        assert isinstance(type(error)("one argument, as PyTorch raises it again"), DecodeError)

    def test_damaged_audio_inside_and_outside_a_window(self, tmp_path):
        whole = write_clip(tmp_path / "whole.mp4", waveform=tone(440, 8, 44100))
        content = bytearray(whole.read_bytes())
        with av.open(str(whole)) as container:
            entries = list(container.streams.audio[0].index_entries)
        for entry in entries[170:175]:  # 23 ms each: near 4 s
            content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(content)
        assert probe(broken).audio_problem.startswith("the audio does not decode after 3.9")
        with pytest.raises(DecodeError, match=r"broken\.mp4: the audio does not decode at 3\.9"):
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
    def test_files_that_are_no_media(self, tmp_path, content, reason):
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
        blind = write_clip(tmp_path / "blind.m4a", waveform=tone(440, 1, 44100))
        assert probe(blind).video_problem == "no video stream"
        with pytest.raises(DecodeError, match="no video stream"):
            decode_video(blind, [0.0])

    def test_a_stream_without_samples_counts_as_absent(self, tmp_path):
        path = write_clip(tmp_path / "a.wav", waveform=np.zeros((1, 1), np.float32), audio_codec="pcm_s16le")
        path.write_bytes(path.read_bytes()[:-2])
        assert probe(path).audio_problem
        with pytest.raises(DecodeError):
            decode_audio(path, [0.0])

    def test_a_stream_without_timestamps(self, tmp_path):
        path = write_clip(tmp_path / "raw.h264", times_s=even_times_s(50, 25))
        assert probe(path).video_problem == "no timestamps"
        with pytest.raises(DecodeError, match="no timestamps"):
            decode_video(path, [0.0])

    @pytest.mark.parametrize("suffix", ["mkv", "mov"])
    @pytest.mark.parametrize("default", [None, 0, 1])
    def test_of_several_streams_the_default_one_is_taken_or_else_the_first(self, tmp_path, suffix, default):
        path = tmp_path / f"two.{suffix}"
        with av.open(str(path), "w") as container:
            streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
            for index, stream in enumerate(streams):
                if default is not None:
                    stream.disposition = Disposition.default if index == default else Disposition(0)
            for stream, frequency_hz in zip(streams, (440, 1000), strict=True):
                samples = (tone(frequency_hz, 1, 16000) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                frame.sample_rate, frame.pts = 16000, 0
                for packet in stream.encode(frame) + stream.encode(None):
                    container.mux(packet)
        expected = tone((440, 1000)[default or 0], 1, 16000)[0]
        assert np.abs(decode_audio(path, [0.0])[0] - expected).max() < 1e-3

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
    code = "import sys, crisscross.data.media.decode, crisscross.data.manifest_summary; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "pandas", "scipy.signal"}.isdisjoint(loaded)
