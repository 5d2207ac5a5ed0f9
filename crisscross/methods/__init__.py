"""The pretraining methods, one file each; ``method.name`` in the config is the name of the file.

This module imports no method and no torch: a launch lists the methods without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

REGISTRY: dict[str, Callable[..., Any]] = {}
"""Classes of the methods that are imported, by the name of their file."""


def register(method: Class) -> Class:
    """Register a class as the method of its file: a decorator.

    Args:
        method: a subclass of ``crisscross.methods.base.BaseMethod``.

    Returns:
        The same class.
    """
    REGISTRY[method.__module__.rpartition(".")[2]] = method
    return method
