"""Names of clips cut from YouTube: ``<id>``, ``<id>_<start>_<end>`` or ``Y<id>``, with any suffix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

NAME = re.compile(r"(?:Y(?=[\w-]{11}(?:_\d|$)))?([\w-]{11})(?:_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?))?")
SAME_TIME_S = 1.0  # names hold whole seconds, lists may hold tenths


def video_id(file: str) -> str | None:
    """Return the id of the video that a file was cut from.

    Return None for any other name.
    """
    found = NAME.fullmatch(PurePosixPath(file).stem)
    return found[1] if found else None


def wrong_time(file: str, start_s: float) -> str:
    """Return why a file is not the listed part of its video.

    A name without a start matches any part. Starts are written in seconds (30, 000030, 30.000) or milliseconds (30000).

    Returns:
        The reason; "" if the file is the listed part.
    """
    found = NAME.fullmatch(PurePosixPath(file).stem)
    if not found or found[2] is None:
        return ""
    named_s = float(found[2])
    if min(abs(named_s - start_s), abs(named_s / 1000 - start_s)) <= SAME_TIME_S:
        return ""
    return f"starts at {named_s:g} s by its name, at {start_s:g} s by the list"


def wrong_part(file: str, starts_s: Mapping[str, float]) -> str:
    """Apply ``wrong_time`` with the list's start of the file's video.

    Return "" for any other name.
    """
    key = video_id(file)
    return "" if key is None else wrong_time(file, starts_s[key])
