"""Temporal relaxation: where the two views of a clip start (paper, "relaxed cross-modal synchronicity").

A *view* is one video segment and one audio segment (paper: 0.5 s and 2 s). Within a view the shorter segment lies
inside the longer one, so the two are synchronous. A *relaxation* sets how far apart the two views lie:

    none      both views are the same video segment and the same audio segment; only the augmentation differs
    mild      the views overlap by half: the first and the last segment of a span of 1.5 segments (the default)
    medium    view 2 starts where view 1 ends: the first and the last segment of a span of 2 segments
    mixed     the two views are drawn independently
    extreme   view 1 lies in the first half of the clip, view 2 at the same offset in the second half

One modality of a clip, its segment in view 1 and in view 2:

              |<------------ clip ------------->|
    none      |        [=1=]                    |
              |        [=2=]                    |
    mild      |        [=1=]                    |
              |          [=2=]                  |
    medium    |        [=1=]                    |
              |             [=2=]               |
    mixed     |                     [=1=]       |
              |   [=2=]                         |
    extreme   |     [=1=]       |               |
              |                 |    [=2=]      |

``video_extreme`` and ``audio_extreme`` are two more variants of the authors: one modality as in extreme, the other
the same in both views. The released code names the five rules same_timestamp, overlapped, adjacent, random, far_apart.

All times are seconds on the file's own timeline, shared by its two streams. Below, *outer* is the modality with the
longer segment (audio, in the paper) and *inner* the other.

# ours: what the paper leaves open.

- The outer segment is drawn uniformly within the time that both streams cover. It reaches over the edge of the
  inner stream only if that time is too short for it.
- Mild and medium draw one span per modality such that *both* views keep their inner segment inside their own
  outer segment. For 0.5 s and 2 s, mild leaves the video span's start uniform in [0.75, 1.5] s after the audio span's;
  medium leaves only 1.5 s, the video span centered on the audio span. A video span drawn anywhere in the audio span
  would often put the video of view 1 inside the audio of view 2 alone.
- A clip too short for its relaxation gets the widest narrower one that fits (``RELAXATIONS``). If not even one
  view fits, a segment longer than its stream starts where the stream starts, and the decoder pads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

_TOLERANCE_S = 1e-6  # container timestamps are rounded: a clip of 4 s may end at 3.9999999


@dataclass(frozen=True)
class Extent:
    """Start and end of a clip's streams in seconds.

    An end is the end of the last frame or sample.
    """

    video_start_s: float
    video_end_s: float
    audio_start_s: float
    audio_end_s: float


@dataclass(frozen=True)
class ViewStarts:
    """Starts of the segments of view 1 and view 2, in seconds.

    ``fallback`` is empty if the relaxation was followed; else it names what replaced it: ``"medium"``, ``"mild"``,
    ``"none"``, or ``"pad"`` if not even one view fits.
    """

    video_s: tuple[float, float]
    audio_s: tuple[float, float]
    fallback: str = ""


def draw_view_starts(
    relaxation: str,
    extent: Extent,
    *,
    video_seconds: float,
    audio_seconds: float,
    rng: np.random.Generator,
) -> ViewStarts:
    """Draw where the two views of a clip start.

    Args:
        relaxation: a key of ``RELAXATIONS``.
        extent: start and end of the clip's streams.
        video_seconds: length of a video segment (paper: 0.5 s).
        audio_seconds: length of an audio segment (paper: 2 s).
        rng: the only source of randomness.

    Returns:
        Starts within the streams whenever the segments fit; see ``ViewStarts.fallback`` for short clips.

    Raises:
        ValueError: if the relaxation is unknown, a length is not positive, or a stream has no start or end.
    """
    if relaxation not in RELAXATIONS:
        raise ValueError(f"unknown relaxation {relaxation!r}; choose one of {', '.join(RELAXATIONS)}")
    limits = _limits(extent, video_seconds, audio_seconds)
    name = relaxation
    while name:
        rule = RELAXATIONS[name]
        starts = rule.draw(limits, rng)
        if starts is not None:
            return replace(starts, fallback="" if name == relaxation else name)
        name = rule.narrower
    return _padded(limits, rng, same_views=relaxation != "mixed")


def even_starts(start_s: float, end_s: float, *, seconds: float, num: int) -> list[float]:
    """Return the starts of evenly spaced evaluation windows.

    The first window starts with the stream, the last ends with it. In a stream shorter than a window, all start
    where the stream starts.

    Args:
        start_s: start of the stream.
        end_s: end of the stream.
        seconds: length of a window.
        num: number of windows.

    Returns:
        ``num`` start times in seconds, ascending.

    Raises:
        ValueError: if ``num`` is below 1, ``seconds`` is not positive, or a time is not finite.
    """
    if num < 1:
        raise ValueError(f"got num={num} evaluation windows; at least 1 is needed")
    if not seconds > 0:
        raise ValueError(f"got windows of seconds={seconds}; a length must be above 0")
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ValueError(f"got a stream from {start_s} to {end_s} s; leave out clips that lack this stream")
    last_s = max(start_s, end_s - seconds)
    if num == 1:
        return [(start_s + last_s) / 2]  # ours: a single window lies in the middle
    return [start_s + (last_s - start_s) * index / (num - 1) for index in range(num)]


@dataclass(frozen=True)
class _Limits:
    """Limits of the outer and the inner stream.

    These are the start and end of each stream, and the lengths of their segments.
    """

    outer_start_s: float
    outer_end_s: float
    inner_start_s: float
    inner_end_s: float
    outer_seconds: float
    inner_seconds: float
    video_is_inner: bool

    @property
    def shared_start_s(self) -> float:
        return max(self.outer_start_s, self.inner_start_s)

    @property
    def shared_end_s(self) -> float:
        return min(self.outer_end_s, self.inner_end_s)

    @property
    def half_s(self) -> float:
        """Half of the time that both streams cover."""
        return (self.shared_end_s - self.shared_start_s) / 2

    @property
    def slack_s(self) -> float:
        """The latest start of an inner segment within its outer one."""
        return self.outer_seconds - self.inner_seconds

    def first_half(self) -> _Limits:
        """Return the limits cut to the first half of the shared time."""
        start_s = self.shared_start_s
        end_s = start_s + self.half_s
        return replace(
            self,
            outer_start_s=max(self.outer_start_s, start_s),
            outer_end_s=min(self.outer_end_s, end_s),
            inner_start_s=max(self.inner_start_s, start_s),
            inner_end_s=min(self.inner_end_s, end_s),
        )

    def starts(self, outer_s: tuple[float, float], inner_s: tuple[float, float]) -> ViewStarts:
        video_s, audio_s = (inner_s, outer_s) if self.video_is_inner else (outer_s, inner_s)
        return ViewStarts(video_s=video_s, audio_s=audio_s)


def _limits(extent: Extent, video_seconds: float, audio_seconds: float) -> _Limits:
    for name, seconds in (("video_seconds", video_seconds), ("audio_seconds", audio_seconds)):
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"got {name}={seconds}; a segment's length must be above 0")
    video = (extent.video_start_s, extent.video_end_s)
    audio = (extent.audio_start_s, extent.audio_end_s)
    if not all(math.isfinite(time_s) for time_s in (*video, *audio)):
        raise ValueError(f"got {extent}; both streams need a start and an end, so leave out clips that lack one")
    if video_seconds <= audio_seconds:
        return _Limits(*audio, *video, audio_seconds, video_seconds, video_is_inner=True)
    return _Limits(*video, *audio, video_seconds, audio_seconds, video_is_inner=False)


_Draw = Callable[[_Limits, np.random.Generator], ViewStarts | None]
"""Draws the starts of two views, or returns None if the clip is too short."""


def _shifted_by(shift: float) -> _Draw:
    """Return the rule whose views lie ``shift`` segments apart.

    Each modality is shifted by its own segment length.
    """

    def draw(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
        spans = _draw_spans(limits, rng, shift)
        if spans is None:
            return None
        outer_s, inner_s = spans
        return limits.starts(
            (outer_s, outer_s + shift * limits.outer_seconds), (inner_s, inner_s + shift * limits.inner_seconds)
        )

    return draw


def _independent(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    """Draw each view by itself."""
    first, second = _draw_spans(limits, rng, 0.0), _draw_spans(limits, rng, 0.0)
    if first is None or second is None:
        return None
    return limits.starts((first[0], second[0]), (first[1], second[1]))


def _half_a_clip_apart(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    """Draw two views that are half a clip apart.

    View 1 is in the first half, and view 2 is half a clip later.
    """
    first = _draw_spans(limits.first_half(), rng, 0.0)
    if first is None:
        return None
    outer_s, inner_s = first
    return limits.starts((outer_s, outer_s + limits.half_s), (inner_s, inner_s + limits.half_s))


def _video_half_a_clip_apart(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    apart = _inner_half_a_clip_apart if limits.video_is_inner else _outer_half_a_clip_apart
    return apart(limits, rng)


def _audio_half_a_clip_apart(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    apart = _outer_half_a_clip_apart if limits.video_is_inner else _inner_half_a_clip_apart
    return apart(limits, rng)


def _outer_half_a_clip_apart(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    """Put the outer segments half a clip apart.

    Both views share one inner segment, inside either of them with equal chance.
    """
    first = _draw_spans(limits.first_half(), rng, 0.0)
    if first is None:
        return None
    outer_s, inner_s = first
    inner_s += limits.half_s * rng.integers(2)
    return limits.starts((outer_s, outer_s + limits.half_s), (inner_s, inner_s))


def _inner_half_a_clip_apart(limits: _Limits, rng: np.random.Generator) -> ViewStarts | None:
    """Put the inner segments half a clip apart.

    Both views share one outer segment, around either of them with equal chance.
    """
    low, half = limits.shared_start_s, limits.half_s
    fits = half >= limits.inner_seconds - _TOLERANCE_S and 2 * half >= limits.outer_seconds - _TOLERANCE_S
    if not fits:
        return None
    first_s = _uniform(rng, low, low + half - limits.inner_seconds)
    inside_s = first_s + half * rng.integers(2)
    last_s = limits.shared_end_s - limits.outer_seconds
    outer_s = _uniform(rng, max(low, inside_s - limits.slack_s), min(inside_s, last_s))
    return limits.starts((outer_s, outer_s), (first_s, first_s + half))


class Relaxation(NamedTuple):
    """A way to draw the two views, and its replacement.

    ``narrower`` replaces it in a clip that is too short.
    """

    draw: _Draw
    narrower: str  # the next narrower relaxation; "" = pad


RELAXATIONS: dict[str, Relaxation] = {
    "none": Relaxation(_shifted_by(0.0), narrower=""),
    "mild": Relaxation(_shifted_by(0.5), narrower="none"),
    "medium": Relaxation(_shifted_by(1.0), narrower="mild"),
    "mixed": Relaxation(_independent, narrower=""),  # it needs no more time than none
    "extreme": Relaxation(_half_a_clip_apart, narrower="medium"),
    "video_extreme": Relaxation(_video_half_a_clip_apart, narrower="none"),
    "audio_extreme": Relaxation(_audio_half_a_clip_apart, narrower="none"),
}


def _draw_spans(limits: _Limits, rng: np.random.Generator, shift: float) -> tuple[float, float] | None:
    """Draw the starts of two spans, each ``1 + shift`` segments long.

    One span is of the outer modality, one of the inner. View 1 is the first segment of both and view 2 the last. In
    both views the inner segment lies inside the outer one. None if that does not fit.
    """
    outer_span = (1 + shift) * limits.outer_seconds
    inner_span = (1 + shift) * limits.inner_seconds
    # View 2's offset is view 1's less shift x slack, and both must lie in [0, slack].
    offset_low, offset_high = shift * limits.slack_s, limits.slack_s
    low, high = limits.shared_start_s, limits.shared_end_s - outer_span
    if high < low - _TOLERANCE_S:  # the outer span may reach over the edge of the inner stream
        low = max(limits.outer_start_s, limits.inner_start_s - offset_high)
        high = min(limits.outer_end_s - outer_span, limits.inner_end_s - inner_span - offset_low)
        inner_fits = limits.inner_end_s - limits.inner_start_s >= inner_span - _TOLERANCE_S
        if high < low - _TOLERANCE_S or not inner_fits:
            return None
    outer_s = _uniform(rng, low, high)
    return outer_s, _uniform(
        rng,
        max(outer_s + offset_low, limits.inner_start_s),
        min(outer_s + offset_high, limits.inner_end_s - inner_span),
    )


def _padded(limits: _Limits, rng: np.random.Generator, *, same_views: bool) -> ViewStarts:
    """Draw the views of a clip that is too short for one."""
    first = _padded_view(limits, rng)
    second = first if same_views else _padded_view(limits, rng)
    return replace(limits.starts((first[0], second[0]), (first[1], second[1])), fallback="pad")


def _padded_view(limits: _Limits, rng: np.random.Generator) -> tuple[float, float]:
    """Draw one view.

    A segment longer than its stream starts where the stream starts.
    """
    slack = limits.slack_s
    outer_low, inner_low = limits.outer_start_s, limits.inner_start_s
    outer_high = max(outer_low, limits.outer_end_s - limits.outer_seconds)
    inner_high = max(inner_low, limits.inner_end_s - limits.inner_seconds)
    outer_s = _uniform(rng, *_cut(outer_low, outer_high, inner_low - slack, inner_high))
    return outer_s, _uniform(rng, *_cut(inner_low, inner_high, outer_s, outer_s + slack))


def _cut(low: float, high: float, cut_low: float, cut_high: float) -> tuple[float, float]:
    """Return the part of [low, high] within the cut.

    If the two do not meet, return [low, high].
    """
    if max(low, cut_low) > min(high, cut_high):
        return low, high
    return max(low, cut_low), min(high, cut_high)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw from [low, high], or return ``low`` if it is empty.

    One number is taken from ``rng`` in either case.
    """
    return low + float(rng.random()) * max(0.0, high - low)
