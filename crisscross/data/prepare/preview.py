"""Draw one clip per class of a dataset: frames over half a second, two seconds of audio.

uv run python -m crisscross.data.prepare.preview data/demo-.../manifest sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from crisscross.data.manifest import Manifest, read_manifest
from crisscross.data.media.decode import decode_windows

NUM_FRAMES = 8
FRAME_RATE_HZ = 16.0
AUDIO_SECONDS = 2.0
SAMPLE_RATE_HZ = 16000
SHOWN_DB = 50.0


def draw_preview(manifest: Manifest, path: Path, *, split: str, max_classes: int = 12) -> None:
    """Draw the first clip of each class of a split.

    Args:
        manifest: the dataset.
        path: image file; its suffix selects the format.
        split: name of the split.
        max_classes: maximal number of rows.
    """
    rows = manifest.split(split).groupby("label", sort=True).first().head(max_classes)
    figure = Figure(figsize=(10, 0.95 * len(rows)), layout="constrained")  # draws without a display
    axes = figure.subplots(len(rows), 2, width_ratios=(3, 1), squeeze=False)
    for (left, right), (label, row) in zip(axes, rows.iterrows(), strict=True):
        middle = (max(row.video_start_s, row.audio_start_s) + min(row.video_end_s, row.audio_end_s)) / 2
        video, audio = decode_windows(
            manifest.root / row.path,
            video_starts_s=[middle - NUM_FRAMES / FRAME_RATE_HZ / 2],
            num_frames=NUM_FRAMES,
            frame_rate_hz=FRAME_RATE_HZ,
            canvas=(80, 80),
            audio_starts_s=[middle - AUDIO_SECONDS / 2],
            audio_seconds=AUDIO_SECONDS,
            sample_rate_hz=SAMPLE_RATE_HZ,
        )
        assert video is not None  # both were requested
        assert audio is not None
        left.imshow(np.concatenate(list(np.pad(video[0], ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)), 1))
        left.set_ylabel(label, rotation=0, ha="right", va="center")
        left.set(xticks=[], yticks=[])
        *_, image = right.specgram(audio[0], NFFT=512, Fs=SAMPLE_RATE_HZ, noverlap=384, cmap="viridis")
        loudest_db = image.get_clim()[1]
        image.set_clim(loudest_db - SHOWN_DB, loudest_db)
        right.set(ylim=(0, 5000), xticks=[], yticks=[])
    axes[0][0].set_title(f"{NUM_FRAMES} frames, 1/{FRAME_RATE_HZ:g} s apart", fontsize=9)
    axes[0][1].set_title(f"{AUDIO_SECONDS:g} s of sound, 0 to 5 kHz", fontsize=9)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Draw the preview from the command line."""
    parser = argparse.ArgumentParser(description="Draw one clip of each class of a dataset.")
    parser.add_argument("manifest", type=Path, help="folder of the manifest")
    parser.add_argument("image", type=Path, help="image file to write")
    parser.add_argument("--split", default="train")
    options = parser.parse_args()
    draw_preview(read_manifest(options.manifest), options.image, split=options.split)
    print(options.image)


if __name__ == "__main__":
    main()
