"""Miniatures of the official datasets: real files in the official folders and list formats, with real class names.

``make_miniature(name, root)`` makes one in about a second; ``data_overrides(name, root)`` are the overrides that select
it. Each class looks and sounds like a class of the demo clips, so it can be learned; it has two different recordings,
and its other files are copies of them.

    kinetics400     3 classes x (4 train, 2 val), 2.5 s, h264 + aac mp4
    kinetics_sound  the same tree, of which 2 classes belong to Kinetics-Sound
    audioset        3 first labels x (4 train, 2 eval), file names as four tools write them
    ucf101          3 classes x 6 clips, folds of 2 test clips per class; mpeg4 avi, mp3 audio in two classes
    hmdb51          3 classes x 7 clips, folds of 2 test clips per class, one clip unused; mpeg4 avi without audio
    esc50           3 classes x 10 wavs of 5 s, 2 per fold
    dcase2013       3 classes x (3 + 3) stereo wavs of 4 s (the official ones have 30 s)
"""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from crisscross.data.synthetic.render import encode_mp4, render_clip
from crisscross.data.synthetic.scenes import SAMPLE_RATE_HZ
from crisscross.data.synthetic.spec import SyntheticClip, SyntheticSettings

SECONDS, FRAME_RATE_HZ, FRAME_SIZE_PX = 2.5, 16, 40
NUM_RECORDINGS = 2  # different ones per class

KINETICS_CLASSES = ("playing accordion", "tap dancing", "abseiling")  # the last is not in Kinetics-Sound
AUDIOSET_LABELS = {"Speech": "/m/09x0r", "Dog": "/m/0bt9lr", "Violin, fiddle": "/m/07y_7"}
UCF101_CLASSES = ("ApplyEyeMakeup", "PlayingViolin", "HandstandPushups")  # the last has no audio
HMDB51_CLASSES = ("brush_hair", "climb", "shoot_bow")
ESC50_CLASSES = {"dog": 0, "chirping_birds": 14, "hand_saw": 49}
DCASE2013_CLASSES = ("bus", "park", "tubestation")


def make_miniature(name: str, root: Path) -> Path:
    """Make the miniature of a dataset.

    Args:
        name: one of ``MINIATURES``.
        root: an empty or new folder for it.

    Returns:
        The root.
    """
    MINIATURES[name](root)
    return root


def data_overrides(name: str, root: Path) -> list[str]:
    """Return the Hydra overrides that select a miniature; its manifest is stored next to it."""
    return [f"data={name}", f"data.root={root}", f"data.manifest_root={root.parent / f'{root.name}-manifests'}"]


def _kinetics(root: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        rows = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number, label in enumerate(KINETICS_CLASSES):
            for index in range(count):
                key, start_s = _youtube_id(split, number, index), 10 * index
                quoted = f'"{label}"' if " " in label else label
                rows.append(f"{quoted},{key},{start_s},{start_s + 10},{split},0")
                path = root / split / label / f"{key}_{start_s:06d}_{start_s + 10:06d}.mp4"
                _put(path, "mp4", number, index)
        _write(root / "annotations" / f"{split}.csv", rows, ending="\n")


def _audioset(root: Path) -> None:
    names = ("{id}_{start}_{end}", "{id}_{start:06d}_{end:06d}", "{id}", "Y{id}")
    labels = [f'{index},{mid},"{name}"' for index, (name, mid) in enumerate(AUDIOSET_LABELS.items())]
    _write(root / "class_labels_indices.csv", ["index,mid,display_name", *labels], ending="\n")
    for split, count in (("balanced_train", 4), ("eval", 2)):
        rows = [
            f"# Segments csv created Sun Mar  5 10:54:25 2017: num_ytids={3 * count}",
            "# YTID, start_seconds, end_seconds, positive_labels",
        ]
        for number, mid in enumerate(AUDIOSET_LABELS.values()):
            for index in range(count):
                key, start_s = _youtube_id(split, number, index), 10 * index
                also = ",/m/09x0r" if number else ""
                rows.append(f'{key}, {start_s}.000, {start_s + 10}.000, "{mid}{also}"')
                name = names[index % len(names)].format(id=key, start=start_s, end=start_s + 10)
                _put(root / f"{split}_segments" / f"{name}.mp4", "mp4", number, index)
        _write(root / f"{split}_segments.csv", rows, ending="\n")


def _ucf101(root: Path) -> None:
    files: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for number, label in enumerate(UCF101_CLASSES):
        spelt = label.replace("Handstand", "HandStand")  # as in the names of the official files
        for fold in files:
            for index in range(2):
                path = f"{label}/v_{spelt}_g{fold:02d}_c{index + 1:02d}.avi"
                files[fold].append(path)
                kind = "silent avi" if label == UCF101_CLASSES[-1] else "avi"
                _put(root / "UCF-101" / path, kind, number, fold + index)
    lists = root / "ucfTrainTestlist"
    _write(lists / "classInd.txt", [f"{number} {label}" for number, label in enumerate(UCF101_CLASSES, 1)])
    for fold in files:
        train = sorted(path for other, paths in files.items() if other != fold for path in paths)
        numbered = [f"{path} {UCF101_CLASSES.index(path.split('/')[0]) + 1}" for path in train]
        _write(lists / f"trainlist{fold:02d}.txt", numbered)
        _write(lists / f"testlist{fold:02d}.txt", sorted(files[fold]))


def _hmdb51(root: Path) -> None:
    videos = ("(HQ)_climb!!!_[#1]_{}_u_cm_np1", "Yards+&_;_@home~_{}_f_nm_np10", "-_{}_h_nm_np2")  # two clips of each
    for number, label in enumerate(HMDB51_CLASSES):
        codes = {fold: [] for fold in (1, 2, 3)}
        for index in range(7):
            name = f"{videos[index // 2 % 3].format(label)}_ba_med_{index}.avi"
            _put(root / "hmdb51_org" / label / name, "silent avi", number, index)
            for fold, rows in codes.items():
                code = 0 if index == 6 else 2 if index // 2 == fold - 1 else 1
                rows.append(f"{name} {code} ")
        for fold, rows in codes.items():
            _write(root / "testTrainMulti_7030_splits" / f"{label}_test_split{fold}.txt", rows)


def _esc50(root: Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for number, (label, target) in enumerate(ESC50_CLASSES.items()):
        for fold in range(1, 6):
            for index, take in enumerate("AB"):
                source = 100032 + 1000 * target + fold
                name = f"{fold}-{source}-{take}-{target}.wav"
                rows.append(f"{name},{fold},{target},{label},{target == 0},{source},{take}")
                _put(root / "audio" / name, "mono wav", number, index)
    _write(root / "meta" / "esc50.csv", rows, ending="\n")


def _dcase2013(root: Path) -> None:
    rows = []
    for folder in ("scenes_stereo", "scenes_stereo_testset"):
        for number, label in enumerate(DCASE2013_CLASSES):
            for index, place in enumerate((1, 4, 10)):  # the official numbers are not consecutive either
                path = f"{folder}/{label}{place:02d}.wav"
                _put(root / path, "stereo wav", number, index)
                rows.append(f"{path}\t{label}")
    _write(root / "meta.txt", rows)


MINIATURES: dict[str, Callable[[Path], None]] = {
    "kinetics400": _kinetics,
    "kinetics_sound": _kinetics,
    "audioset": _audioset,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "esc50": _esc50,
    "dcase2013": _dcase2013,
}


def _youtube_id(split: str, number: int, index: int) -> str:
    """Return a name of 11 letters in the form of a YouTube id; some start with a dash."""
    return f"{'-_aZ'[index % 4]}{number}{index}{split[:2]}xY-_4T"


def _write(path: Path, rows: list[str], *, ending: str = "\r\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(row + ending for row in rows).encode())


def _put(path: Path, kind: str, class_index: int, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_recording(kind, class_index, index % NUM_RECORDINGS))


@functools.cache
def _recording(kind: str, class_index: int, index: int) -> bytes:
    seconds = {"mono wav": 5.0, "stereo wav": 4.0}.get(kind, SECONDS)
    settings = SyntheticSettings(seconds=seconds, frame_size_px=FRAME_SIZE_PX, frame_rate_hz=FRAME_RATE_HZ)
    frames, waveform = render_clip(SyntheticClip("train", class_index, index), settings)
    if kind == "mp4":
        return encode_mp4(frames, waveform, frame_rate_hz=FRAME_RATE_HZ)
    if kind.endswith("wav"):
        return _wav(waveform, num_channels=2 if kind.startswith("stereo") else 1)
    return _avi(frames, None if kind.startswith("silent") else waveform)


def _wav(waveform: np.ndarray, *, num_channels: int, sample_rate_hz: int = 44100) -> bytes:
    """Return a 16-bit wav file at 44.1 kHz, as in both audio datasets."""
    times = np.arange(round(len(waveform) / SAMPLE_RATE_HZ * sample_rate_hz)) * SAMPLE_RATE_HZ / sample_rate_hz
    resampled = np.interp(times, np.arange(len(waveform)), waveform)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(num_channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(np.repeat((resampled * 32767).astype("<i2"), num_channels).tobytes())
    return buffer.getvalue()


def _avi(frames: np.ndarray, waveform: np.ndarray | None) -> bytes:
    """Return an avi file with MPEG-4 video and, optionally, MP3 audio, as in UCF101 and HMDB51."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        video = container.add_stream("mpeg4", rate=FRAME_RATE_HZ)
        video.height, video.width, video.pix_fmt, video.gop_size = *frames.shape[1:3], "yuv420p", 12
        audio = container.add_stream("libmp3lame", rate=SAMPLE_RATE_HZ, layout="mono") if waveform is not None else None
        for packet in (*_video_packets(video, frames), *(_audio_packets(audio, waveform) if audio is not None else ())):
            container.mux(packet)
    return buffer.getvalue()


def _video_packets(stream: av.VideoStream, frames: np.ndarray) -> Iterator[av.Packet]:
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE_HZ)
        yield from stream.encode(frame)
    yield from stream.encode()


def _audio_packets(stream: av.AudioStream, waveform: np.ndarray) -> Iterator[av.Packet]:
    block = 576  # samples of an MP3 frame at 16 kHz
    for first in range(0, len(waveform), block):
        piece = np.ascontiguousarray(waveform[None, first : first + block], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, first, Fraction(1, SAMPLE_RATE_HZ)
        yield from stream.encode(frame)
    yield from stream.encode()
