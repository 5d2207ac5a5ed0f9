"""What typed settings have in common: strictness, and complaints that name the key. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A number from 0 up to, but not, 1."""

_EXPECTED = {
    "int": "a whole number",
    "int_from": "a whole number",
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
"""By pydantic's name of a finding, whole or without its last word, what is expected."""


class Settings(BaseModel):
    """A group of settings: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)


Built = TypeVar("Built")


def build(key: str, kind: type[Built], numbers: Mapping[str, Any]) -> Built:
    """Build a dataclass from a config node; whatever is wrong with a number becomes a line that names the node."""
    try:
        return kind(**numbers)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: {str(error).removeprefix(kind.__name__).removeprefix('.__init__() ')}") from None


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def parse(kind: type[AnySettings], config: Mapping[str, Any]) -> AnySettings:
    """Check a resolved config.

    Args:
        kind: the settings class, such as ``PretrainSettings``.
        config: plain dicts, lists and scalars.

    Returns:
        The settings.

    Raises:
        ValueError: one line that names every wrong key, its value and what was expected.
    """
    try:
        return kind.model_validate(dict(config))
    except ValidationError as error:
        raise ValueError("; ".join(_complaint(item, config) for item in error.errors())) from None


def parse_node(node: str, kind: type[AnySettings], config: Mapping[str, Any]) -> AnySettings:
    """Check a node of a config, as ``parse`` does; what is wrong is named with the node: ``method.weight``."""
    try:
        return kind.model_validate(dict(config))
    except ValidationError as error:
        whole = {node: config}
        found = [{**item, "loc": (node, *item["loc"])} for item in error.errors()]
        raise ValueError("; ".join(_complaint(item, whole) for item in found)) from None


def _complaint(item: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Turn one of pydantic's findings into `key=value: what was expected`."""
    path = _path(item["loc"], config)
    key = ".".join(path)
    if item["type"] == "value_error":  # our own sentences say it all, but not always where the node lies
        sentence = str(item["ctx"]["error"])
        above = "".join(f"{part}." for part in path[:-1])
        return f"{above}{sentence}" if path and sentence.startswith(f"{path[-1]}.") else sentence
    if item["type"] == "missing":
        if path[-1].isdigit():  # of a list of so many values
            return f"{'.'.join(path[:-1])}={_shown(item['input'])}: too short: give one value more"
        return f"{key} is missing: set it"
    if item["type"] == "extra_forbidden":
        return f"{key} is not a setting: check its spelling"
    if item["type"] == "union_tag_invalid":
        known = item["ctx"]["expected_tags"].replace("'", "")
        return f"{key}.name={item['ctx']['tag']} is unknown: choose one of {known}"
    return f"{key}={_shown(item['input'])}: expected {_expected(item)}"


def _expected(item: Mapping[str, Any]) -> str:
    """Return what a value should have been; in pydantic's words where we have none."""
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
    return str(value)


def _path(loc: Sequence[int | str], config: Mapping[str, Any]) -> list[str]:
    """Return where in the config a finding lies: pydantic also names which of several classes was tried there."""
    path: list[str] = []
    node: Any = config
    for part in loc[:-1]:
        if isinstance(node, Mapping) and part not in node:
            continue
        path.append(str(part))
        holds_more = isinstance(node, (Mapping, list, tuple))
        node = node[part] if holds_more else None
    return [*path, *(str(part) for part in loc[-1:])]
