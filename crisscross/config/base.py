"""The base class of all settings, and their error messages.

A message is one line that names the key, the value and what is expected. Only pydantic is imported, so that launching
and ``--help`` stay fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A number from 0 to 1, 1 excluded."""

_EXPECTED = {
    "int": "a whole number",
    "int_from": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text (what looks like a number needs quotes of its own)",
    "list": "a list, such as [a,b]",
    "tuple": "a list, such as [a,b]",
    "dict": "a group of settings, not one value",
    "mapping": "a group of settings, not one value",
    "model": "a group of settings, not one value",
    "model_attributes": "a group of settings, not one value",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more values",
    "too_long": "{max_length} or fewer values",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""What is expected, by pydantic's error type: the whole type, or the type without its last word."""


class Settings(BaseModel):
    """A group of settings; unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


Built = TypeVar("Built")


def build(node: str, kind: type[Built], numbers: Mapping[str, Any]) -> Built:
    """Build a dataclass of numbers from a config node.

    Args:
        node: where the numbers lie in the config, such as ``views.video.transform``; for error messages.
        kind: the dataclass.
        numbers: its arguments.

    Raises:
        ValueError: if a key is unknown, a value has the wrong type, or the dataclass rejects a value; one line that
            names the node.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [f"{node}.{name} is not a setting: check its spelling" for name in numbers if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown))
    try:
        return kind(**numbers)
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from None
    except TypeError as error:  # such as a comparison of text with a number: find the value by its type
        try:
            TypeAdapter(kind).validate_python(dict(numbers))
        except ValidationError as found:
            raise ValueError("; ".join(_complaints(found, numbers, node=node))) from None
        raise ValueError(f"{node}: {error}") from None


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def parse(kind: type[AnySettings], config: Mapping[str, Any]) -> AnySettings:
    """Check a resolved config.

    Args:
        kind: the settings class, such as ``PretrainSettings``.
        config: plain dicts, lists and scalars.

    Returns:
        The settings.

    Raises:
        ValueError: if a key or value is wrong; one line that names every such key, its value and what is expected.
    """
    return parse_node("", kind, config)


def parse_node(node: str, kind: type[AnySettings], config: Mapping[str, Any]) -> AnySettings:
    """Check one node of a config.

    Args:
        node: the node's key, such as ``method``; error messages put it before the keys: ``method.weight``.
        kind: the settings class.
        config: the node's content.

    Raises:
        ValueError: if a key or value is wrong; one line, as from ``parse``.
    """
    try:
        return kind.model_validate(dict(config))
    except ValidationError as error:
        raise ValueError("; ".join(_complaints(error, config, node=node))) from None


def _complaints(error: ValidationError, config: Mapping[str, Any], *, node: str) -> list[str]:
    """Return one line for each of pydantic's findings."""
    above = tuple(node.split(".")) if node else ()
    whole: Mapping[str, Any] = config
    for part in reversed(above):
        whole = {part: whole}
    found: list[dict[str, Any]] = [{**item, "loc": (*above, *item["loc"])} for item in error.errors()]
    inside = {item["loc"][:-1] for item in found}  # a list with a wrong item counts as empty to pydantic
    return [_complaint(item, whole) for item in found if item["type"] != "too_short" or item["loc"] not in inside]


def _complaint(item: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Turn one of pydantic's findings into ``key=value: expected ...``."""
    path = _path(item["loc"], config)
    key = ".".join(path)
    if item["type"] == "value_error":  # the message comes from our own validators, without the keys above their class
        sentence = str(item["ctx"]["error"])
        above = "".join(f"{part}." for part in path[:-1])
        return f"{above}{sentence}" if path and sentence.startswith(f"{path[-1]}.") else sentence
    if item["type"] == "missing":
        if path[-1].isdigit():  # an item of a list with a fixed length
            return f"{'.'.join(path[:-1])}={_shown(item['input'])}: too short: give one value more"
        return f"{key} is missing: set it"
    if item["type"] == "extra_forbidden":
        return f"{key} is not a setting: check its spelling"
    if item["type"] == "union_tag_not_found":
        return f"{key}.name is missing: set it"
    if item["type"] == "union_tag_invalid":
        known = item["ctx"]["expected_tags"].replace("'", "")
        return f"{key}.name={item['ctx']['tag']} is unknown: choose one of {known}"
    return f"{key}={_shown(item['input'])}: expected {_expected(item)}"


def _expected(item: Mapping[str, Any]) -> str:
    """Return the expected value in words, by default pydantic's."""
    kind, limits = item["type"], item.get("ctx", {})
    words = _EXPECTED.get(kind) or _EXPECTED.get(kind.rpartition("_")[0])
    if kind == "literal_error":
        return limits["expected"].replace("'", "")
    if words is None:
        return f"{item['msg'][0].lower()}{item['msg'][1:]}"
    return words.format(**limits)


def _shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_shown(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_shown(item)}' for key, item in value.items())}}}"
    return str(value)


def _path(loc: Sequence[int | str], config: Mapping[str, Any]) -> list[str]:
    """Return the keys to a finding, without the classes that pydantic tried."""
    path: list[str] = []
    node: Any = config
    for depth, part in enumerate(loc, start=1):
        if isinstance(node, Mapping):
            if part not in node and depth < len(loc):
                continue
            path.append(str(part))
            node = node.get(part)
        elif isinstance(node, (list, tuple)):
            path.append(str(part))
            node = node[part] if isinstance(part, int) and part < len(node) else None
    return path
