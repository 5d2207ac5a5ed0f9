"""Settings, classes and file names of the demo's synthetic clips."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SYNTHETIC_VERSION = 3  # increase it when the same settings give other clips
SPLITS = ("train", "val", "test")
CLASSES = ("orbit", "slide", "bounce", "pulse", "spin", "zigzag", "blink", "meet", "shake", "fall")


@dataclass(frozen=True)
class SyntheticSettings:
    """Number, length and size of the clips.

    The defaults are our choice, for a demo that takes minutes on two cores.

    Raises:
        ValueError: if a value is outside its range.
    """

    num_classes: int = 10
    train_clips_per_class: int = 32
    test_clips_per_class: int = 16
    val_clips_per_class: int = 0
    seconds: float = 5.0
    frame_size_px: int = 40
    frame_rate_hz: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        checks = [
            ("num_classes", 2 <= self.num_classes <= len(CLASSES), f"2 to {len(CLASSES)}"),
            ("train_clips_per_class", self.train_clips_per_class >= 0, "0 or more"),
            ("test_clips_per_class", self.test_clips_per_class >= 0, "0 or more"),
            ("val_clips_per_class", self.val_clips_per_class >= 0, "0 or more"),
            ("seconds", 0.5 <= self.seconds <= 600, "0.5 to 600"),
            (
                "frame_size_px",
                32 <= self.frame_size_px <= 512 and self.frame_size_px % 2 == 0,
                "even, 32 to 512",
            ),
            ("frame_rate_hz", 8 <= self.frame_rate_hz <= 60, "8 to 60"),
        ]
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"toy clips: got {name}={getattr(self, name)}; allowed: {allowed}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in use."""
        return CLASSES[: self.num_classes]

    def fingerprint(self) -> str:
        """Return a hash of the settings and the generator's version.

        Returns:
            16 hex digits.
        """
        content = {"toy_version": SYNTHETIC_VERSION, **asdict(self)}
        if not self.val_clips_per_class:  # clips made before there was a validation split keep their hash
            del content["val_clips_per_class"]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SyntheticClip:
    """One clip: its split, class and index.

    The index counts the clips of the same split and class.
    """

    split: str
    class_index: int
    index: int

    @property
    def path(self) -> Path:
        """Path relative to the dataset's root."""
        name = CLASSES[self.class_index]
        return Path(self.split, name, f"{name}_{self.split}_{self.index:04d}.mp4")


def list_clips(settings: SyntheticSettings) -> list[SyntheticClip]:
    """Return all clips, ordered by split, class and index."""
    counts = {split: getattr(settings, f"{split}_clips_per_class") for split in SPLITS}
    return [
        SyntheticClip(split, class_index, index)
        for split in SPLITS
        for class_index in range(settings.num_classes)
        for index in range(counts[split])
    ]
