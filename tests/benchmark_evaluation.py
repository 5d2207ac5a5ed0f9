"""What evaluations cost: ``uv run python -m tests.benchmarks evaluation FOLDER``.

- The test of fine-tuning and of frozen video features: ten segments of every clip of FOLDER, through the feature
  extractor and through a plain PyAV loop that decodes the same windows and runs the same network, in turns.
- The SVM of ESC-50: 1,600 clips x 100 draws x 4,608 features of 50 classes, made up, on disk: seconds and memory of a
  fit; and scikit-learn's LinearSVC on a fiftieth of the rows.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from sklearn.svm import LinearSVC

from crisscross.config.base import parse
from crisscross.config.experiment import DownstreamSettings
from crisscross.config.views import VideoTransformSettings
from crisscross.data.catalog import open_manifest, prepare
from crisscross.data.file_list import media_files
from crisscross.data.loader import Clips, SegmentDataset
from crisscross.data.relaxation import even_starts
from crisscross.evaluation.feature_matrix import FeatureMatrix
from crisscross.evaluation.linear_svm import fit_svm
from crisscross.models.backbones import random_init_backbones
from crisscross.training.features import Extraction, FeatureStore, extract
from crisscross.transforms.video import eval_transform_video

ROUNDS = 3
NUM_CLIPS, NUM_DRAWS, DIM, NUM_CLASSES = 1600, 100, 4608, 50
C = 1e-4  # works for all folds (as in the paper)


def main(folder: str | None = None) -> None:
    """Measure and print.

    Args:
        folder: a tree of video clips; None leaves the first part out.
    """
    if folder is not None:
        _dense_test(Path(folder).absolute())
    _svm()


def _dense_test(root: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        settings = _settings(root, Path(name))
        manifest = open_manifest(settings.data)
        clips = Clips(manifest.clips, manifest.root)
        network = random_init_backbones(settings.model, seed=0).video_backbone.eval()
        ways = {
            "plain PyAV loop": lambda number: _plain(clips, settings, network),
            "feature extractor": lambda number: _extracted(clips, settings, network, Path(name) / str(number)),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(ROUNDS):
            for way, act in ways.items():
                began = time.process_time()
                act(number)
                seconds[way].append(time.process_time() - began)
        num = settings.views.evaluation_clips
        print(f"{root}: {len(clips)} clips, {num} segments each, demo network, one thread")
        for way, times in seconds.items():
            print(f"  {way:<24} {len(clips) / statistics.median(times):8.2f} clips per CPU-second")


def _settings(root: Path, folder: Path) -> DownstreamSettings:
    csv = folder / "list.csv"
    csv.write_text("file,label\n" + "".join(f'"{file}",clip\n' for file in sorted(media_files(root))))
    overrides = [
        *("data=folder", f"data.root={root}", f"data.csv={csv}", "data.split_column=null"),
        *(f"data.manifest_root={folder}", "data.require=[video]"),
        *("views.evaluation_clips=10", "execution.num_workers=0", "execution.device=cpu", "downstream.modalities=[v]"),
    ]
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("downstream", overrides=overrides), resolve=True)
    return parse(DownstreamSettings, {**config, "data": prepare(config["data"], progress=False)})


def _extracted(clips: Clips, settings: DownstreamSettings, network: torch.nn.Module, folder: Path) -> None:
    store = FeatureStore(folder, num_clips=len(clips), num_segments=settings.views.evaluation_clips)
    extraction = Extraction(
        networks={"v": network},
        dataset=SegmentDataset(clips, settings.views, modalities="v"),
        views=settings.views,
        execution=settings.execution,
        device=torch.device("cpu"),
    )
    extract(store, extraction, report=lambda done, rate: None)


@torch.inference_mode()
def _plain(clips: Clips, settings: DownstreamSettings, network: torch.nn.Module) -> None:
    """Decode every clip once from the start, keep the frames nearest to the wanted times, run the network."""
    views = settings.views.video
    height, width = views.canvas_px
    for index in range(len(clips)):
        extent = clips.extent(index, "v")
        starts = even_starts(extent.video_start_s, extent.video_end_s, seconds=views.seconds, num=10)
        wanted = [start + frame / views.frame_rate_hz for start in starts for frame in range(views.num_frames)]
        with av.open(str(clips.path(index))) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            pictures = [(frame.time or 0.0, frame) for frame in container.decode(stream)]
        times = np.array([time_s for time_s, _ in pictures])
        nearest = [int(np.abs(times - time_s).argmin()) for time_s in wanted]
        shown = {
            place: pictures[place][1].to_ndarray(format="rgb24", width=width, height=height) for place in set(nearest)
        }
        frames = torch.from_numpy(np.stack([shown[place] for place in nearest])).unflatten(0, (10, views.num_frames))
        aspect = torch.full((10,), float(clips.aspects[index]))
        network(eval_transform_video(frames, aspect, VideoTransformSettings(**views.transform)))


def _svm() -> None:
    torch.set_num_threads(2)
    random = np.random.default_rng(0)
    centres = random.random((NUM_CLASSES, DIM), np.float32)
    labels = np.arange(NUM_CLIPS) % NUM_CLASSES
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.f32"
        with path.open("wb") as file:
            for label in labels:
                clip = centres[label] + random.random((1, DIM), np.float32)
                draws = clip + random.random((NUM_DRAWS, DIM), np.float32)
                columns = draws.reshape(NUM_DRAWS, -1, 3)
                file.write((columns / np.linalg.norm(columns, axis=-1, keepdims=True)).tobytes())
        array = np.memmap(path, np.float32, "r", shape=(NUM_CLIPS, NUM_DRAWS, DIM))
        rows = FeatureMatrix.of((array,), np.arange(NUM_CLIPS), labels)
        print(f"SVM: {len(rows)} rows of {DIM} features, {NUM_CLASSES} classes, {array.nbytes / 1e9:.2f} GB on disk")
        began = time.perf_counter()
        fit_svm(rows, num_classes=NUM_CLASSES, c=C, moments=None, device=torch.device("cpu"))
        taken, memory = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"  C={C:g}: {taken:6.0f} s; the process has used {memory:.1f} GB at most, pages of the file included")
        few = rows.some(np.arange(NUM_CLIPS), num_segments=NUM_DRAWS // 50)
        x, y = few.at(slice(None)).reshape(-1, DIM), few.labels.repeat(few.num_segments)
        began = time.perf_counter()
        fit_svm(few, num_classes=NUM_CLASSES, c=C, moments=None, device=torch.device("cpu"))
        ours, began = time.perf_counter() - began, time.perf_counter()
        LinearSVC(C=C, random_state=0).fit(x, y)
        print(f"  {len(few)} of the rows, C={C:g}: {ours:.1f} s, LinearSVC {time.perf_counter() - began:.1f} s")
