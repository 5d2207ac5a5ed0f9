"""Passwords left out of what is printed."""

from __future__ import annotations

import re


def mask_passwords(text: str) -> str:
    """Replace ``user:password@`` in every URI of a text."""
    return re.sub(r"(?<=://)[^\s\"']+@", "***@", text)  # up to the last @: a password may hold a slash
