"""The numbers of the transforms, apart from the transforms: configs are checked where torch must not be imported."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, model_validator

from crisscross.config.base import Settings, build


class VideoViewSettings(Settings):
    """The video half of a view."""

    num_frames: int = Field(gt=0)
    frame_rate_hz: float = Field(gt=0, allow_inf_nan=False)
    canvas_px: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    transform: dict[str, Any]

    @model_validator(mode="after")
    def _transform_is_possible(self) -> VideoViewSettings:
        build("views.video.transform", VideoTransformSettings, self.transform)
        return self

    @property
    def seconds(self) -> float:
        """Length of a video segment."""
        return self.num_frames / self.frame_rate_hz


class AudioViewSettings(Settings):
    """The audio half of a view."""

    seconds: float = Field(gt=0, allow_inf_nan=False)
    sample_rate_hz: int = Field(gt=0)
    transform: dict[str, Any]

    @model_validator(mode="after")
    def _transform_is_possible(self) -> AudioViewSettings:
        transform = build("views.audio.transform", AudioTransformSettings, self.transform)
        if transform.sample_rate_hz != self.sample_rate_hz:
            raise ValueError(
                f"views.audio.transform.sample_rate_hz={transform.sample_rate_hz} is not"
                f" views.audio.sample_rate_hz={self.sample_rate_hz}: set the latter alone"
            )
        return self


class ViewSettings(Settings):
    """What a view is made of, and how many of them evaluate a clip."""

    video: VideoViewSettings
    audio: AudioViewSettings
    evaluation_clips: int = Field(gt=0)

    @model_validator(mode="after")
    def _segment_fits(self) -> ViewSettings:
        if self.video.seconds > self.audio.seconds:
            raise ValueError(
                f"a video segment of {self.video.seconds:g} s does not fit into {self.audio.seconds:g} s of audio:"
                " lower views.video.num_frames or raise views.audio.seconds"
            )
        return self


@dataclasses.dataclass(frozen=True)
class VideoTransformSettings:
    """Numbers of the video transforms; the defaults are those of PAPER.md, section 3.

    Setting a probability, or a colour strength, or a size to 0 switches that augmentation off.
    """

    crop_px: int = 112  # height and width of what goes into the network
    crop_probability: float = 1.0  # otherwise the evaluation's centre crop
    crop_area_min: float = 0.08
    crop_area_max: float = 1.0
    crop_aspect_min: float = 3 / 4
    crop_aspect_max: float = 4 / 3
    crop_tries: int = 10  # torchvision's
    flip_probability: float = 0.5
    jitter_probability: float = 1.0
    jitter_brightness: float = 0.4
    jitter_contrast: float = 0.4
    jitter_saturation: float = 0.4
    jitter_hue: float = 0.2
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_kernel_divisor: int = 20  # kernel = crop_px // divisor * 2 + 1
    blur_sigma_min_px: float = 0.1
    blur_sigma_max_px: float = 2.0
    cutout_probability: float = 1.0
    cutout_max_px: int = 20
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet, red green blue
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    eval_crop_fraction: float = 0.875  # centre crop's side over the frame's short side

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        object.__setattr__(self, "mean", tuple(self.mean))  # a config hands over lists
        object.__setattr__(self, "std", tuple(self.std))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                refuse(field.name, value, "a number from 0 to 1")
            if field.name.startswith("jitter_") and not 0 <= value <= (0.5 if field.name == "jitter_hue" else 1):
                refuse(field.name, value, "0 to 0.5" if field.name == "jitter_hue" else "0 to 1")
        checks = {
            "crop_px": (self.crop_px >= 1, "at least 1"),
            "crop_area_min": (0 < self.crop_area_min <= self.crop_area_max <= 1, "0 < min <= max <= 1"),
            "crop_aspect_min": (0 < self.crop_aspect_min <= self.crop_aspect_max, "0 < min <= max"),
            "crop_tries": (self.crop_tries >= 0, "0 or more"),
            "blur_kernel_divisor": (self.blur_kernel_divisor >= 1, "at least 1"),
            "blur_sigma_min_px": (0 < self.blur_sigma_min_px <= self.blur_sigma_max_px, "0 < min <= max"),
            "cutout_max_px": (0 <= self.cutout_max_px <= self.crop_px, f"0 to crop_px ({self.crop_px})"),
            "eval_crop_fraction": (0 < self.eval_crop_fraction <= 1, "above 0, at most 1"),
            "std": (
                len(self.mean) == len(self.std) == 3 and min(self.std) > 0,
                "3 means, 3 positive deviations",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                refuse(name, getattr(self, name), expected)


@dataclasses.dataclass(frozen=True)
class AudioTransformSettings:
    """Numbers of the audio transforms; the defaults are those of PAPER.md, section 3.

    Switched off: the volume by a range of 1 to 1, the masks by a number or a size of 0, the resize-crop by a
    probability of 0, the time warp by a window of 0 (its default; the downstream tasks use 20).
    """

    sample_rate_hz: int = 16000
    n_fft: int = 1024
    hop_samples: int = 160
    num_mels: int | None = 80  # None = the n_fft // 2 + 1 linear bins of the FFT, all of them
    f_min_hz: float = 0.0
    f_max_hz: float = 8000.0
    log_offset: float = 2.0**-23  # the eps of single precision: silence stays in reach of the data
    mean: float = -5.3688107
    std: float = 4.410007
    volume_min: float = 0.8
    volume_max: float = 1.2
    num_frequency_masks: int = 2
    frequency_mask_max_bins: int = 9
    num_time_masks: int = 2
    time_mask_max_frames: int = 19
    resize_crop_probability: float = 1.0
    canvas_frequency: float = 1.0  # the virtual canvas, in multiples of the spectrogram
    canvas_time: float = 1.5
    frequency_scale_min: float = 0.6
    frequency_scale_max: float = 1.5
    time_scale_min: float = 0.6
    time_scale_max: float = 1.5
    time_warp_frames: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        checks = {
            "sample_rate_hz": (self.sample_rate_hz > 0, "above 0"),
            "n_fft": (self.n_fft > 0, "above 0"),
            "hop_samples": (self.hop_samples > 0, "above 0"),
            "num_mels": (self.num_mels is None or self.num_mels > 0, "above 0, or null for linear bins"),
            "f_max_hz": (
                0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2,
                f"above f_min_hz ({self.f_min_hz}), at most half of sample_rate_hz ({self.sample_rate_hz})",
            ),
            "log_offset": (self.log_offset > 0, "above 0"),
            "std": (self.std > 0, "above 0"),
            "volume_min": (0 <= self.volume_min <= self.volume_max, "0 <= min <= max"),
            "num_frequency_masks": (self.num_frequency_masks >= 0, "0 or more"),
            "num_time_masks": (self.num_time_masks >= 0, "0 or more"),
            "frequency_mask_max_bins": (
                0 <= self.frequency_mask_max_bins <= self.num_bins,
                f"0 to {'n_fft // 2 + 1' if self.num_mels is None else 'num_mels'} ({self.num_bins})",
            ),
            "time_mask_max_frames": (self.time_mask_max_frames >= 0, "0 or more"),
            "resize_crop_probability": (0 <= self.resize_crop_probability <= 1, "a number from 0 to 1"),
            "canvas_frequency": (self.canvas_frequency >= 1, "at least 1"),
            "canvas_time": (self.canvas_time >= 1, "at least 1"),
            "frequency_scale_min": (
                0 < self.frequency_scale_min <= self.frequency_scale_max,
                "0 < min <= max",
            ),
            "time_scale_min": (0 < self.time_scale_min <= self.time_scale_max, "0 < min <= max"),
            "time_warp_frames": (self.time_warp_frames >= 0, "0 or more"),
        }
        if self.num_mels is None:  # the range of the mel filters would be set and have no effect
            half = self.sample_rate_hz / 2
            checks["f_min_hz"] = (self.f_min_hz == 0, "0, as num_mels is null: all linear bins are used")
            checks["f_max_hz"] = (self.f_max_hz == half, f"{half}, as num_mels is null: all linear bins are used")
        for name, (good, expected) in checks.items():
            if not good:
                refuse(name, getattr(self, name), expected)

    @property
    def num_bins(self) -> int:
        """Height of the spectrogram: mel bands, or the FFT's bins where there are none."""
        return self.n_fft // 2 + 1 if self.num_mels is None else self.num_mels


def refuse(name: str, got: object, expected: str) -> None:
    """Raise the one-line error for an impossible number."""
    raise ValueError(f"{name} got {got}; expected {expected}: correct {name}")
