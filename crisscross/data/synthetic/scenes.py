"""Frames and audio of the synthetic clips: ten kinds of motion, each with its own sound.

ours: all numbers of this file.

A clip has a clock, ``beats(t) = tempo x t + phase``, that drives both frames and audio: the ball touches the ground
when the click sounds. Only the pattern over a beat depends on the class. Everything else is drawn for each clip from
one distribution for all classes: tempo, position, size, shapes, colours, background, a still bystander, pitch, timbre,
loudness, noise. So neither one frame nor a mean spectrum reveals the class.

Colours, background, pitch, timbre and noise also change during a clip, so they do not identify it: otherwise
networks trained for two minutes learn little more than to recognize a clip by its background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crisscross.data.synthetic.spec import CLASSES

SAMPLE_RATE_HZ = 16_000  # the paper's rate, so that nothing is resampled
TEMPO_HZ = (2.0, 2.8)  # a beat fits into a video segment of 0.5 s, several into an audio segment of 2 s
_LOWEST, _HIGHEST = np.log((300.0, 1200.0))  # pitches in Hz, as logarithms
_CHANGE_SECONDS = 1.5  # from one background, colour or pitch to the next
_NUM_ACTORS = 3  # the same for all classes; "meet" needs two or more


@dataclass(frozen=True)
class Clock:
    """Clock of a clip, shared by frames and audio."""

    tempo_hz: float
    phase: float

    def beats(self, times_s: np.ndarray) -> np.ndarray:
        """Return the beats at the given times, of any shape."""
        return self.tempo_hz * times_s + self.phase


@dataclass
class Pose:
    """Pose of an actor over time.

    All attributes are arrays of shape (T,). Lengths are fractions of the frame's side.
    """

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    opacity: np.ndarray


@dataclass(frozen=True)
class _Steps:
    """Parameters of an actor's motion."""

    beats: np.ndarray
    reach: float
    handedness: float
    axis: float
    rng: np.random.Generator


def draw_clock(rng: np.random.Generator) -> Clock:
    """Draw a clip's tempo and phase."""
    return Clock(tempo_hz=float(rng.uniform(*TEMPO_HZ)), phase=float(rng.uniform(0, 1)))


def render_frames(
    kind: str, clock: Clock, *, num_frames: int, frame_rate_hz: float, size_px: int, rng: np.random.Generator
) -> np.ndarray:
    """Render the frames of a clip.

    Args:
        kind: one of ``CLASSES``.
        clock: the clip's clock.
        num_frames: number of frames T.
        frame_rate_hz: frames per second.
        size_px: side of the square frame.
        rng: draws everything that does not depend on the class.

    Returns:
        ``uint8`` array of shape (T, size_px, size_px, 3), RGB.
    """
    times_s = np.arange(num_frames) / frame_rate_hz
    frames = _background(times_s, size_px, rng)
    drift = rng.uniform(-0.02, 0.02, 2)
    for _ in range(rng.integers(0, 2)):
        _paint(frames, times_s, _still_pose(times_s, drift, rng), rng)
    for pose in _actor_poses(kind, clock.beats(times_s), times_s, drift, rng):
        _paint(frames, times_s, pose, rng)
    return np.clip(frames, 0, 255).astype(np.uint8)


def render_sound(kind: str, clock: Clock, *, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Render the audio of a clip at ``SAMPLE_RATE_HZ``.

    Args:
        kind: one of ``CLASSES``.
        clock: the clip's clock.
        num_samples: number of samples S.
        rng: draws everything that does not depend on the class.

    Returns:
        ``float32`` array of shape (S,) within [-1, 1].
    """
    times_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    octaves, envelope = _sound_pattern(kind, clock.beats(times_s), times_s, clock, rng)
    pitch_hz = np.exp(_wandering(times_s, _LOWEST, _HIGHEST, rng)[0])
    sound = envelope * _voice(times_s, pitch_hz * 2.0**octaves, rng)
    sound /= np.abs(sound).max()
    sound += 10 ** (-rng.uniform(16, 36) / 20) * _drone(times_s, rng)
    sound += 10 ** (-_wandering(times_s, 30, 50, rng)[0] / 20) * _colored_noise(num_samples, rng)
    peak = 10 ** (-rng.uniform(3, 15) / 20)
    return (peak * sound / np.abs(sound).max()).astype(np.float32)


def _actor_poses(
    kind: str, beats: np.ndarray, times_s: np.ndarray, drift: np.ndarray, rng: np.random.Generator
) -> list[Pose]:
    """Return the poses of all actors.

    All have the same synchronous motion, each at its own position.
    """
    reach = rng.uniform(0.22, 0.32)
    handedness = rng.choice([-1.0, 1.0])
    axis = rng.uniform(0, 2 * np.pi)
    poses: list[Pose] = []
    for actor in range(_NUM_ACTORS):
        pose = _still_pose(times_s, drift, rng)
        if kind == "meet" and actor > 0:
            pose.x, pose.y = poses[0].x.copy(), poses[0].y.copy()
        poses.append(pose)
    for actor, pose in enumerate(poses):
        _MOTIONS[kind](pose, _Steps(beats, reach, handedness, axis + 2 * np.pi * actor / _NUM_ACTORS, rng))
    return poses


def _still_pose(times_s: np.ndarray, drift: np.ndarray, rng: np.random.Generator) -> Pose:
    ones = np.ones_like(times_s)
    x, y = rng.uniform(0.3, 0.7, 2)
    return Pose(
        x=x + drift[0] * times_s,
        y=y + drift[1] * times_s,
        scale=rng.uniform(0.17, 0.27) * ones,
        angle=rng.uniform(0, 2 * np.pi) * ones,
        opacity=ones.copy(),
    )


def _orbit(pose: Pose, steps: _Steps) -> None:
    pose.x += steps.reach * np.cos(2 * np.pi * steps.beats)
    pose.y += steps.handedness * steps.reach * np.sin(2 * np.pi * steps.beats)


def _slide(pose: Pose, steps: _Steps) -> None:
    pose.x += steps.handedness * steps.reach * np.cos(2 * np.pi * steps.beats)


def _bounce(pose: Pose, steps: _Steps) -> None:
    part = steps.beats % 1  # a parabola from contact to contact
    pose.y += steps.reach * (1 - 8 * part * (1 - part))


def _pulse(pose: Pose, steps: _Steps) -> None:
    pose.scale *= 1 + 0.6 * np.cos(2 * np.pi * steps.beats)


def _spin(pose: Pose, steps: _Steps) -> None:
    pose.angle += steps.handedness * np.pi * steps.beats


def _zigzag(pose: Pose, steps: _Steps) -> None:
    pose.y += steps.reach * _triangle(steps.beats)
    pose.x = 0.5 + 0.35 * _triangle(steps.handedness * steps.beats / 4 + steps.axis)


def _blink(pose: Pose, steps: _Steps) -> None:
    pose.opacity *= (steps.beats % 1) < 0.5


def _meet(pose: Pose, steps: _Steps) -> None:
    apart = 0.06 + 0.7 * steps.reach * (1 - np.cos(2 * np.pi * steps.beats))
    pose.x += apart * np.cos(steps.axis)
    pose.y += apart * np.sin(steps.axis)


def _shake(pose: Pose, steps: _Steps) -> None:
    force = 0.3 * steps.reach * (1 + 0.4 * np.cos(2 * np.pi * steps.beats))
    pose.x += force * steps.rng.standard_normal(len(steps.beats))
    pose.y += force * steps.rng.standard_normal(len(steps.beats))


def _fall(pose: Pose, steps: _Steps) -> None:
    drop = np.floor(steps.beats).astype(int)  # each drop falls from a new place
    pose.x += steps.rng.uniform(-0.25, 0.25, drop.max() + 1)[drop]
    pose.y += 2.5 * steps.reach * (steps.beats % 1 - 0.5)


_MOTIONS: dict[str, Callable[[Pose, _Steps], None]] = {
    "orbit": _orbit,
    "slide": _slide,
    "bounce": _bounce,
    "pulse": _pulse,
    "spin": _spin,
    "zigzag": _zigzag,
    "blink": _blink,
    "meet": _meet,
    "shake": _shake,
    "fall": _fall,
}


def _triangle(beats: np.ndarray) -> np.ndarray:
    """Return a triangle wave in [-1, 1] of period 1."""
    return 4 * np.abs(beats % 1 - 0.5) - 1


def _background(times_s: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Return textures that fade into each other.

    Returns:
        Float32, shape (T, size_px, size_px, 3).
    """
    num_textures = int(np.ceil(times_s[-1] / _CHANGE_SECONDS)) + 2
    textures = np.zeros((num_textures, size_px, size_px, 3), dtype=np.float32)
    for texture in textures:
        for cells, strength in ((3, 14.0), (6, 7.0)):
            texture += strength * _stretched(rng.standard_normal((cells, cells, 3)), size_px)
        texture += rng.uniform(20, 80, 3)
    places = times_s / _CHANGE_SECONDS + rng.uniform()
    before = places.astype(int)
    weight = (places - before).astype(np.float32)[:, None, None, None]
    return (1 - weight) * textures[before] + weight * textures[before + 1]


def _wandering(times_s: np.ndarray, low: float, high: float, rng: np.random.Generator, *, num: int = 1) -> np.ndarray:
    """Return piecewise linear random values over time.

    Returns:
        Values in [low, high], shape (num, T).
    """
    places_s = _CHANGE_SECONDS * (np.arange(int(times_s[-1] / _CHANGE_SECONDS) + 3) - rng.uniform())
    return np.stack([np.interp(times_s, places_s, rng.uniform(low, high, len(places_s))) for _ in range(num)])


def _stretched(coarse: np.ndarray, side: int) -> np.ndarray:
    """Resize a coarse grid (n, n, C) linearly to (side, side, C)."""
    places = np.linspace(0, len(coarse) - 1, side)
    low = np.minimum(places.astype(int), len(coarse) - 2)
    weight = places - low
    rows = coarse[low] * (1 - weight)[:, None, None] + coarse[low + 1] * weight[:, None, None]
    return rows[:, low] * (1 - weight)[None, :, None] + rows[:, low + 1] * weight[None, :, None]


def _paint(frames: np.ndarray, times_s: np.ndarray, pose: Pose, rng: np.random.Generator) -> None:
    """Paint one shape onto all frames, in place, with soft edges."""
    size_px = frames.shape[1]
    # Brighter than any background, hence visible.
    colors = _wandering(times_s, 120, 255, rng, num=3).T.astype(np.float32)
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    radius_px = int(np.ceil(1.3 * pose.scale.max() * size_px)) + 1
    grid = np.arange(-radius_px, radius_px + 1)
    for frame, color, x, y, scale, angle, opacity in zip(
        frames, colors, pose.x, pose.y, pose.scale, pose.angle, pose.opacity, strict=True
    ):
        if opacity == 0:
            continue
        rows, columns = grid + round(y * size_px), grid + round(x * size_px)
        rows = rows[(rows >= 0) & (rows < size_px)]
        columns = columns[(columns >= 0) & (columns < size_px)]
        if not (len(rows) and len(columns)):
            continue
        dy = ((rows + 0.5) / size_px - y)[:, None]
        dx = ((columns + 0.5) / size_px - x)[None, :]
        cos, sin = np.cos(angle), np.sin(angle)
        distance = shape((cos * dx + sin * dy) / scale, (cos * dy - sin * dx) / scale)
        cover = np.clip(0.5 - distance * scale * size_px, 0, 1).astype(np.float32)[..., None] * opacity
        window = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        window += cover * (color - window)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 1, np.abs(v) - 0.35)


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.hypot(u, v / 0.45) - 1) * 0.45


def _wedge(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(-u - 0.7, 0.9 * u + np.abs(v) * 1.6 - 0.9)


def _tee(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    stem = np.maximum(np.abs(u) - 1, np.abs(v) - 0.25)
    return np.minimum(stem, np.maximum(np.abs(u - 0.7) - 0.3, np.abs(v) - 0.75))


_SHAPES = (_bar, _ellipse, _wedge, _tee)  # none is round: a rotation is visible in every class


def _sound_pattern(
    kind: str, beats: np.ndarray, times_s: np.ndarray, clock: Clock, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return pitch and loudness of a class over time.

    Returns:
        Pitch in octaves and loudness in [0, 1], each of shape (S,).
    """
    part, wave = beats % 1, np.cos(2 * np.pi * beats)
    level, loud = np.zeros_like(beats), np.ones_like(beats)
    seconds = part / clock.tempo_hz
    match kind:
        case "orbit":  # a siren
            return 0.45 * wave, loud
        case "slide":  # two notes in turn
            return 0.35 * np.sign(wave), loud
        case "bounce":  # a click at each contact
            return level, np.exp(-seconds / 0.02)
        case "pulse":  # swelling and fading
            return level, (0.5 + 0.5 * wave) ** 1.5
        case "spin":  # rising
            return 1.2 * (part - 0.5), loud
        case "zigzag":  # falling
            return 1.2 * (0.5 - part), loud
        case "blink":  # on and off
            return level, np.clip(np.minimum(part, 0.5 - part) / clock.tempo_hz / 0.003, 0, 1)
        case "meet":  # a bell
            return level, np.exp(-part / 0.3)
        case "shake":  # a rattle
            rattle = np.sin(2 * np.pi * rng.uniform(9, 13) * times_s) > 0
            return level, rattle * (1 + 0.4 * wave) / 1.4
        case "fall":  # a new note for each drop
            drop = np.floor(beats).astype(int)
            return rng.uniform(-0.6, 0.6, drop.max() + 1)[drop], loud
    raise ValueError(f"unknown kind of clip {kind!r}; choose one of {', '.join(CLASSES)}")


def _voice(times_s: np.ndarray, pitch_hz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a voice of the given pitch, shape (S,).

    It has changing overtones and noise.
    """
    turns = 2 * np.pi * (np.cumsum(pitch_hz) / SAMPLE_RATE_HZ + rng.uniform())
    strengths = _wandering(times_s, -0.3, 0.6, rng, num=3).clip(0)
    voice = np.sin(turns) + sum(strength * np.sin(k * turns) for k, strength in enumerate(strengths, 2))
    # A band of noise around the pitch instead of a line.
    num_points = int(len(pitch_hz) / SAMPLE_RATE_HZ * rng.uniform(300, 600)) + 2
    noise = np.interp(
        np.linspace(0, num_points - 1, len(pitch_hz)), np.arange(num_points), rng.standard_normal(num_points)
    )
    return voice * (1 + _wandering(times_s, 0, 1, rng)[0] * (noise - 1))


def _drone(times_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one to three tones in [-1, 1], shape (S,).

    They are independent of the frames.
    """
    pitches_hz = np.exp(_wandering(times_s, _LOWEST, _HIGHEST, rng, num=int(rng.integers(1, 4))))
    turns = np.cumsum(pitches_hz, axis=1) / SAMPLE_RATE_HZ
    return np.sin(2 * np.pi * (turns + rng.uniform(size=(len(turns), 1)))).mean(axis=0)


def _colored_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise between white and pink of unit standard deviation, shape (S,)."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum /= np.arange(1, len(spectrum) + 1) ** rng.uniform(0, 0.5)
    noise = np.fft.irfft(spectrum, num_samples)
    return noise / noise.std()
