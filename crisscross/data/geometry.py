"""How a decoded frame is to be shown: turned or mirrored, and with pixels that need not be square."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation

# Averaging is the cheapest filter that does not alias, bicubic serves where a side grows. The flags make the result
# the same on every processor, and cost nothing measurable.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_SHRINK, _GROW = Interpolation.AREA | _EXACT, Interpolation.BICUBIC | _EXACT

MAX_PIXEL_ASPECT = 10.0  # a header that claims more is taken to be wrong (chosen by us)


@dataclass(frozen=True)
class Turn:
    """A rotation by a multiple of 90 degrees, with or without mirroring, in the order of the attributes."""

    transposed: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return an array of shape (H, W, C) turned; a view."""
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return pixels[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


def turn_of(frame: av.VideoFrame) -> Turn:
    """Return how the container wants a frame turned, so that people stand upright; odd angles to the nearest 90."""
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # typed as a dict of other keys
    if side_data is None:
        return Turn()
    # x' = a x + c y and y' = b x + d y, in 16.16 fixed point, rows (a b u) (c d v) (tx ty w)
    a, b, _, c, d = np.frombuffer(bytes(side_data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(transposed=True, flip_horizontal=c < 0, flip_vertical=b < 0)
    return Turn(flip_horizontal=a < 0, flip_vertical=d < 0)


def pixel_aspect(stream: av.video.VideoStream) -> float:
    """Return the width of a stored pixel over its height; 1 where the file does not say or says nonsense."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT else 1.0


def displayed_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """Return (height, width) of a frame as displayed: wide pixels widen it, then it is turned."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if turn_of(frame).transposed else (height, width)


def to_rgb(frame: av.VideoFrame, aspect: float, size: tuple[int, int] | None) -> np.ndarray:
    """Return a frame as a player shows it: uint8 of shape (H, W, 3), full range, transparency dropped.

    Args:
        frame: a frame in any pixel format.
        aspect: the width of a stored pixel over its height.
        size: (height, width) to scale to, as displayed; None for the displayed size.
    """
    turn = turn_of(frame)
    height, width = size or displayed_size(frame, aspect)
    if turn.transposed:
        height, width = width, height
    shrinks = height <= frame.height and width <= frame.width
    scaled = frame.reformat(
        width=width, height=height, format="rgb24", interpolation=_SHRINK if shrinks else _GROW, threads=1
    )
    return turn.apply(scaled.to_ndarray())


def from_rgb(pixels: np.ndarray) -> av.VideoFrame:
    """Return pixels as an encoder takes them: the reverse of ``to_rgb`` but for the halved colour resolution.

    Args:
        pixels: uint8 of shape (H, W, 3), even H and W.

    Returns:
        A frame in yuv420p: limited range, the colour matrix of BT.601, which ``to_rgb`` takes an unmarked file to have.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", interpolation=_SHRINK, threads=1)
