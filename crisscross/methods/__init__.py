"""The methods, one file each; nothing is imported until one is built."""

from __future__ import annotations

import pkgutil


def available_methods() -> list[str]:
    """Return the names of the methods in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "settings"))
