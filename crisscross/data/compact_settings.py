"""What a compact copy of a dataset is like."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

COMPACT_VERSION = 1  # raise it when the same settings would give other copies

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class CompactSettings:
    """What a compact copy is like; a clip whose pictures are smaller than asked keeps its size.

    Attributes:
        short_side_px: the shorter side of the pictures. 128 is what an evaluation at 112 px sees of a clip (112 /
            0.875, section 3 of the paper). Pretraining cuts crops, of 8 % of the picture and more, out of
            ``views.video.canvas_px``: 256 keeps all that the paper's views can show, and decodes half as fast.
        key_frame_every: pictures from one key frame to the next; 12 made decoding 2.3 times as fast as 250 (measured).
        crf: x264's constant quality, lower is better (chosen by us, see README for what it does).
        preset: x264's, how much time it takes to save space; it changes nothing for the decoder (chosen by us).
        sample_rate_hz: of the sound (16,000 in the paper).

    Raises:
        ValueError: a value that no copy can have.
    """

    short_side_px: int = 128
    key_frame_every: int = 12
    crf: int = 20
    preset: str = "veryfast"
    sample_rate_hz: int = 16_000

    def __post_init__(self) -> None:
        checks = [
            ("short_side_px", 16 <= self.short_side_px <= 2160 and self.short_side_px % 2 == 0, "even, 16 to 2160"),
            ("key_frame_every", 1 <= self.key_frame_every <= 600, "1 to 600"),
            ("crf", 0 <= self.crf <= 51, "0 to 51"),
            ("preset", self.preset in PRESETS, ", ".join(PRESETS)),
            ("sample_rate_hz", 8_000 <= self.sample_rate_hz <= 48_000, "8000 to 48000"),
        ]
        for name, good, allowed in checks:
            if not good:
                raise ValueError(f"compact copy: got {name}={getattr(self, name)}; allowed: {allowed}")

    def as_json(self) -> dict[str, Any]:
        """Return the settings and the version as plain JSON: what two copies must have in common."""
        return {"compact_version": COMPACT_VERSION, **asdict(self)}
