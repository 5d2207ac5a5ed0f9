"""Temporal relaxation: where the two views of a clip start (paper, "relaxed cross-modal synchronicity").

A view is a video segment and an audio segment. Within a view the shorter of the two (video, in the paper)
lies wholly inside the longer, so that a "synchronous" pair is synchronous. A relaxation says how far apart
the two views lie. All times are seconds on the file's own timeline, shared by its two streams.

Choices of ours, where the paper is silent:

- "What fits both streams": the longer segment is drawn uniformly within the time that both streams cover.
  Only when that time is too short for it may it reach over the edge of the other stream.
- Mild and medium draw one span a modality. The video span sits in the audio span so that *both* views keep
  their video inside their own audio. For segments of 0.5 s and 2 s, mild leaves the video span's start
  uniform in [0.75, 1.5] s after the audio span's; medium leaves only 1.5 s, the video span centred on the
  audio span. Drawn anywhere in the audio span, v1 would often lie in a2 and not in a1.
- A clip too short for its relaxation gets the widest narrower one that fits (extreme, medium, mild, none;
  mixed needs no more room than none). When not even one view fits, a segment longer than its stream starts
  where the stream starts, and the decoder pads it. ``ViewStarts.fallback`` names what was used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # configs are checked with this module's names alone
    import numpy as np


_TOLERANCE_S = 1e-6  # container time stamps are rounded; a clip of 4 s may say 3.9999999


@dataclass(frozen=True)
class Extent:
    """When a clip's streams start and end, in seconds; an end is the end of the last frame or sample."""

    video_start_s: float
    video_end_s: float
    audio_start_s: float
    audio_end_s: float


@dataclass(frozen=True)
class ViewStarts:
    """When the segments of view 1 and view 2 start, in seconds.

    ``fallback`` is empty when the relaxation was followed; otherwise it names what took its place:
    ``"medium"``, ``"mild"``, ``"none"``, or ``"pad"`` when not even one view fits.
    """

    video_s: tuple[float, float]
    audio_s: tuple[float, float]
    fallback: str = ""


@dataclass(frozen=True)
class _Room:
    """The longer and the shorter of the two segments, and the streams that they must fit."""

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

    def within(self, start_s: float, end_s: float) -> _Room:
        """The same segments with both streams cut to one stretch of time."""
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


def none(extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator) -> ViewStarts:
    """Both views are the same video segment and the same audio segment (released name: same_timestamp)."""
    room = _room(extent, video_seconds, audio_seconds)
    return _first_that_fits(room, rng, _shifted_by(0.0))


def mild(extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator) -> ViewStarts:
    """Views overlap by half: first and last segment of a span of 1.5 segments (released name: overlapped)."""
    room = _room(extent, video_seconds, audio_seconds)
    return _first_that_fits(room, rng, _shifted_by(0.5), none=_shifted_by(0.0))


def medium(extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator) -> ViewStarts:
    """View 2 begins where view 1 ends, in both modalities (released name: adjacent)."""
    room = _room(extent, video_seconds, audio_seconds)
    return _first_that_fits(room, rng, _shifted_by(1.0), mild=_shifted_by(0.5), none=_shifted_by(0.0))


def mixed(extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator) -> ViewStarts:
    """The two views are drawn independently of each other (released name: random)."""
    room = _room(extent, video_seconds, audio_seconds)
    return _first_that_fits(room, rng, _independent)


def extreme(extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator) -> ViewStarts:
    """View 1 from the clip's first half, view 2 equally far into its second (released name: far_apart)."""
    room = _room(extent, video_seconds, audio_seconds)
    return _first_that_fits(
        room, rng, _half_a_clip_apart, medium=_shifted_by(1.0), mild=_shifted_by(0.5), none=_shifted_by(0.0)
    )


def video_extreme(
    extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator
) -> ViewStarts:
    """Video half a clip apart; one audio segment for both, around either of them (a released variant)."""
    room = _room(extent, video_seconds, audio_seconds)
    apart = _inner_half_a_clip_apart if room.video_is_inner else _outer_half_a_clip_apart
    return _first_that_fits(room, rng, apart, none=_shifted_by(0.0))


def audio_extreme(
    extent: Extent, *, video_seconds: float, audio_seconds: float, rng: np.random.Generator
) -> ViewStarts:
    """Audio half a clip apart; one video segment for both, inside either of them (a released variant)."""
    room = _room(extent, video_seconds, audio_seconds)
    apart = _outer_half_a_clip_apart if room.video_is_inner else _inner_half_a_clip_apart
    return _first_that_fits(room, rng, apart, none=_shifted_by(0.0))


RELAXATIONS: dict[str, Callable[..., ViewStarts]] = {
    "none": none,
    "mild": mild,
    "medium": medium,
    "mixed": mixed,
    "extreme": extreme,
    "video_extreme": video_extreme,
    "audio_extreme": audio_extreme,
}


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
        extent: when the clip's streams start and end.
        video_seconds: length of a video segment (paper: 0.5 s).
        audio_seconds: length of an audio segment (paper: 2 s).
        rng: where the draw comes from, the only source of randomness.

    Returns:
        Starts within the streams whenever the segments fit; see ``ViewStarts.fallback`` for short clips.

    Raises:
        ValueError: unknown relaxation, a length that is not positive, or a stream without a start or end.
    """
    if relaxation not in RELAXATIONS:
        raise ValueError(f"unknown relaxation {relaxation!r}; choose one of {', '.join(RELAXATIONS)}")
    return RELAXATIONS[relaxation](extent, video_seconds=video_seconds, audio_seconds=audio_seconds, rng=rng)


def even_starts(start_s: float, end_s: float, *, seconds: float, num: int) -> list[float]:
    """Starts of evenly spaced evaluation windows, the first at the stream's start, the last at its end.

    One window alone sits in the middle (chosen by us). In a stream shorter than a window, all start with it.

    Args:
        start_s: when the stream starts.
        end_s: when the stream ends.
        seconds: length of a window.
        num: how many windows.

    Returns:
        ``num`` start times in seconds, ascending.

    Raises:
        ValueError: ``num`` below 1, ``seconds`` not positive, or times that are not finite.
    """
    if num < 1:
        raise ValueError(f"got num={num} evaluation windows; at least 1 is needed")
    if not seconds > 0:
        raise ValueError(f"got windows of seconds={seconds}; a length must be above 0")
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ValueError(f"got a stream from {start_s} to {end_s} s; leave out clips that lack this stream")
    last_s = max(start_s, end_s - seconds)
    if num == 1:
        return [(start_s + last_s) / 2]
    return [start_s + (last_s - start_s) * index / (num - 1) for index in range(num)]


_Draw = Callable[[_Room, "np.random.Generator"], ViewStarts | None]


def _room(extent: Extent, video_seconds: float, audio_seconds: float) -> _Room:
    for name, seconds in (("video_seconds", video_seconds), ("audio_seconds", audio_seconds)):
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"got {name}={seconds}; a segment's length must be above 0")
    video = (extent.video_start_s, extent.video_end_s)
    audio = (extent.audio_start_s, extent.audio_end_s)
    if not all(math.isfinite(time_s) for time_s in (*video, *audio)):
        raise ValueError(f"got {extent}; both streams need a start and an end, so leave out clips that lack one")
    if video_seconds <= audio_seconds:
        return _Room(*audio, *video, audio_seconds, video_seconds, video_is_inner=True)
    return _Room(*video, *audio, video_seconds, audio_seconds, video_is_inner=False)


def _first_that_fits(room: _Room, rng: np.random.Generator, wanted: _Draw, **narrower: _Draw) -> ViewStarts:
    """Draw as wanted, or else by the first of the narrower relaxations that fits, or else padded."""
    starts = wanted(room, rng)
    if starts is not None:
        return starts
    for name, draw in narrower.items():
        starts = draw(room, rng)
        if starts is not None:
            return ViewStarts(starts.video_s, starts.audio_s, fallback=name)
    first = _padded_view(room, rng)
    second = _padded_view(room, rng) if wanted is _independent else first
    starts = room.starts((first[0], second[0]), (first[1], second[1]))
    return ViewStarts(starts.video_s, starts.audio_s, fallback="pad")


def _shifted_by(shift: float) -> _Draw:
    """Views whose segments are ``shift`` segment lengths apart, in each modality its own length."""

    def draw(room: _Room, rng: np.random.Generator) -> ViewStarts | None:
        spans = _draw_spans(room, rng, shift)
        if spans is None:
            return None
        outer_s, inner_s = spans
        return room.starts(
            (outer_s, outer_s + shift * room.outer_seconds), (inner_s, inner_s + shift * room.inner_seconds)
        )

    return draw


def _draw_spans(room: _Room, rng: np.random.Generator, shift: float) -> tuple[float, float] | None:
    """Starts of the outer and inner span, ``1 + shift`` segments long, with inner in outer in both views."""
    outer_span = (1 + shift) * room.outer_seconds
    inner_span = (1 + shift) * room.inner_seconds
    # View 2's offset is view 1's less shift x slack, and both must lie in [0, slack].
    slack = room.outer_seconds - room.inner_seconds
    offset_low, offset_high = shift * slack, slack
    low, high = room.shared_start_s, room.shared_end_s - outer_span
    if high < low - _TOLERANCE_S:
        low = max(room.outer_start_s, room.inner_start_s - offset_high)
        high = min(room.outer_end_s - outer_span, room.inner_end_s - inner_span - offset_low)
        inner_fits = room.inner_end_s - room.inner_start_s >= inner_span - _TOLERANCE_S
        if high < low - _TOLERANCE_S or not inner_fits:
            return None
    outer_s = _uniform(rng, low, high)
    return outer_s, _uniform(
        rng,
        max(outer_s + offset_low, room.inner_start_s),
        min(outer_s + offset_high, room.inner_end_s - inner_span),
    )


def _independent(room: _Room, rng: np.random.Generator) -> ViewStarts | None:
    first, second = _draw_spans(room, rng, 0.0), _draw_spans(room, rng, 0.0)
    if first is None or second is None:
        return None
    return room.starts((first[0], second[0]), (first[1], second[1]))


def _half_a_clip_apart(room: _Room, rng: np.random.Generator) -> ViewStarts | None:
    half = (room.shared_end_s - room.shared_start_s) / 2
    first = _draw_spans(room.within(room.shared_start_s, room.shared_start_s + half), rng, 0.0)
    if first is None:
        return None
    outer_s, inner_s = first
    return room.starts((outer_s, outer_s + half), (inner_s, inner_s + half))


def _outer_half_a_clip_apart(room: _Room, rng: np.random.Generator) -> ViewStarts | None:
    """Outer segments far apart; one inner segment for both, inside either of them with equal chance."""
    half = (room.shared_end_s - room.shared_start_s) / 2
    first = _draw_spans(room.within(room.shared_start_s, room.shared_start_s + half), rng, 0.0)
    if first is None:
        return None
    outer_s, inner_s = first
    inner_s += half * rng.integers(2)
    return room.starts((outer_s, outer_s + half), (inner_s, inner_s))


def _inner_half_a_clip_apart(room: _Room, rng: np.random.Generator) -> ViewStarts | None:
    """Inner segments far apart; one outer segment for both, around either of them with equal chance."""
    low, half = room.shared_start_s, (room.shared_end_s - room.shared_start_s) / 2
    fits = half >= room.inner_seconds - _TOLERANCE_S and 2 * half >= room.outer_seconds - _TOLERANCE_S
    if not fits:
        return None
    first_s = _uniform(rng, low, low + half - room.inner_seconds)
    inside_s = first_s + half * rng.integers(2)
    slack = room.outer_seconds - room.inner_seconds
    outer_s = _uniform(rng, max(low, inside_s - slack), min(inside_s, room.shared_end_s - room.outer_seconds))
    return room.starts((outer_s, outer_s), (first_s, first_s + half))


def _padded_view(room: _Room, rng: np.random.Generator) -> tuple[float, float]:
    """One view of a clip that is too short: a segment longer than its stream starts where the stream does."""
    slack = room.outer_seconds - room.inner_seconds
    outer_low, inner_low = room.outer_start_s, room.inner_start_s
    outer_high = max(outer_low, room.outer_end_s - room.outer_seconds)
    inner_high = max(inner_low, room.inner_end_s - room.inner_seconds)
    outer_s = _uniform(rng, *_cut(outer_low, outer_high, inner_low - slack, inner_high))
    return outer_s, _uniform(rng, *_cut(inner_low, inner_high, outer_s, outer_s + slack))


def _cut(low: float, high: float, cut_low: float, cut_high: float) -> tuple[float, float]:
    """The part of [low, high] within the cut, or all of it where the two do not meet."""
    if max(low, cut_low) > min(high, cut_high):
        return low, high
    return max(low, cut_low), min(high, cut_high)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in [low, high]; ``low`` where the range is empty. Always takes one number from ``rng``."""
    return low + float(rng.random()) * max(0.0, high - low)
