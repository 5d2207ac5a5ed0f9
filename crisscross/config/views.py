"""Settings of views and their augmentation (as in the paper).

The dataclasses of the transforms are here, not in crisscross/transforms, so that configs are checked without torch.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, model_validator

from crisscross.config.base import Settings, build


class VideoViewSettings(Settings):
    """The video segment of a view."""

    num_frames: int = Field(gt=0)  # frames per segment
    frame_rate_hz: float = Field(gt=0, allow_inf_nan=False)  # to which videos are resampled
    canvas_px: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]  # height and width of decoded frames
    transform: dict[str, Any]  # arguments of VideoTransformSettings

    @model_validator(mode="after")
    def _transform_is_possible(self) -> VideoViewSettings:
        build("views.video.transform", VideoTransformSettings, self.transform)
        return self

    @property
    def seconds(self) -> float:
        """Length of a video segment in seconds."""
        return self.num_frames / self.frame_rate_hz


class AudioViewSettings(Settings):
    """The audio segment of a view."""

    seconds: float = Field(gt=0, allow_inf_nan=False)  # length of a segment
    sample_rate_hz: int = Field(gt=0)  # to which audio is resampled
    transform: dict[str, Any]  # arguments of AudioTransformSettings

    @model_validator(mode="after")
    def _transform_is_possible(self) -> AudioViewSettings:
        transform = build("views.audio.transform", AudioTransformSettings, self.transform)
        if transform.sample_rate_hz != self.sample_rate_hz:
            raise ValueError(
                f"views.audio.transform.sample_rate_hz={transform.sample_rate_hz} is not"
                f" views.audio.sample_rate_hz={self.sample_rate_hz}: set only the latter"
            )
        return self


class ViewSettings(Settings):
    """The segments of a view, and the views per evaluated clip."""

    video: VideoViewSettings
    audio: AudioViewSettings
    evaluation_clips: int = Field(gt=0)  # evenly spaced segments per clip in an evaluation; scores are averaged

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
    """Parameters of the video transforms, with defaults from the paper.

    A probability, a jitter strength or a cutout size of 0 switches that augmentation off.
    """

    crop_px: int = 112  # height and width of the network's input
    crop_probability: float = 1.0  # of a random resized crop; otherwise the center crop of the evaluation
    crop_area_min: float = 0.08  # as a fraction of the frame's area
    crop_area_max: float = 1.0
    crop_aspect_min: float = 3 / 4  # width over height
    crop_aspect_max: float = 4 / 3
    crop_tries: int = 10  # draws of a crop before a center crop is taken instead; torchvision's number
    flip_probability: float = 0.5  # of a horizontal flip
    jitter_probability: float = 1.0  # of color jitter; its strengths are torchvision's ColorJitter arguments
    jitter_brightness: float = 0.4
    jitter_contrast: float = 0.4
    jitter_saturation: float = 0.4
    jitter_hue: float = 0.2
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5  # of a Gaussian blur
    blur_kernel_divisor: int = 20  # kernel side = crop_px // divisor * 2 + 1 pixels
    blur_sigma_min_px: float = 0.1
    blur_sigma_max_px: float = 2.0
    cutout_probability: float = 1.0  # of one square set to the mean color
    cutout_max_px: int = 20  # its largest side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, red green blue, of values in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    eval_crop_fraction: float = 0.875  # evaluation: side of the center crop over the frame's short side

    def __post_init__(self) -> None:
        """Check the numbers."""
        object.__setattr__(self, "mean", tuple(self.mean))  # configs hold lists
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
    """Parameters of the audio transforms, with defaults from the paper.

    To switch off: the volume, set its range to 1 to 1; the masks, a number or a size of 0; the resize-crop, a
    probability of 0; the time warp, a window of 0.
    """

    sample_rate_hz: int = 16000  # of the waveform
    n_fft: int = 1024  # samples per FFT window
    hop_samples: int = 160  # samples between two frames
    num_mels: int | None = 80  # mel bands; None = the n_fft // 2 + 1 linear bins of the FFT
    f_min_hz: float = 0.0  # lowest frequency of the mel bands
    f_max_hz: float = 8000.0  # highest frequency of the mel bands
    log_offset: float = 2.0**-23  # added to the power before the logarithm: single precision's epsilon
    mean: float = -5.3688107  # of the log spectrogram, which is normalized to mean 0 and standard deviation 1
    std: float = 4.410007
    volume_min: float = 0.8  # factor of the waveform
    volume_max: float = 1.2
    num_frequency_masks: int = 2
    frequency_mask_max_bins: int = 9  # largest height of a mask
    num_time_masks: int = 2
    time_mask_max_frames: int = 19  # largest width of a mask
    resize_crop_probability: float = 1.0
    canvas_frequency: float = 1.0  # height of the virtual canvas, in spectrogram heights
    canvas_time: float = 1.5  # width of the virtual canvas, in spectrogram widths
    frequency_scale_min: float = 0.6  # height of a crop, in spectrogram heights
    frequency_scale_max: float = 1.5
    time_scale_min: float = 0.6  # width of a crop, in spectrogram widths
    time_scale_max: float = 1.5
    time_warp_frames: int = 0  # window of the time warp; 20 in the audio downstream tasks

    def __post_init__(self) -> None:
        """Check the numbers."""
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
        if self.num_mels is None:  # otherwise the range of the mel bands would be ignored
            half = self.sample_rate_hz / 2
            checks["f_min_hz"] = (self.f_min_hz == 0, "0, as num_mels is null: all linear bins are used")
            checks["f_max_hz"] = (self.f_max_hz == half, f"{half}, as num_mels is null: all linear bins are used")
        for name, (good, expected) in checks.items():
            if not good:
                refuse(name, getattr(self, name), expected)

    @property
    def num_bins(self) -> int:
        """Height of the spectrogram: mel bands or linear bins."""
        return self.n_fft // 2 + 1 if self.num_mels is None else self.num_mels


def refuse(name: str, got: object, expected: str) -> None:
    """Raise the error for an impossible number: got, expected, remedy.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} got {got}; expected {expected}: correct {name}")
