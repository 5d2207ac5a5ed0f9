"""Masking of passwords in printed text."""

from __future__ import annotations

import re


def mask_passwords(text: str) -> str:
    """Replace ``user:password@`` in every URI of a text."""
    return re.sub(r"(?<=://)[^\s\"']+@", "***@", text)  # up to the last @: a password may contain a slash
