"""Overrides: dotted names with values as text, at any depth of a configuration.

1. `leaves(cls, values)` are the dotted names that can be set, with their type hints: every field of
   every nested dataclass, optional ones too.
2. `parse(hint, text, path)` reads text by a hint (`none`, `true`, `1e6`, `0.9,0.95`).
3. `assign(values, path, value)` puts a value into the nested tables of a configuration's JSON.

Types and their checks: `models.fields`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, cast, get_args, get_origin

from models.errors import ConfigError
from models.fields import check, describe, hints_for, part_of


def leaves(cls: type[Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every dotted name below a dataclass that can be set, with its type hint.

    Args:
        cls: the dataclass.
        values: of a configuration, as JSON; some decide which fields others have.
        prefix: of all names.
    """
    found: dict[str, Any] = {}
    for name, hint in hints_for(cls, values).items():
        part = part_of(hint)
        if part is not hint:
            found[prefix + name] = hint  # an optional part can be set to none
        if part is not None:
            inner = values.get(name)
            inner = cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else {}
            found |= leaves(part, inner, f"{prefix}{name}.")
    return found


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted name in nested tables; a part that is none becomes a table of this field."""
    *parents, leaf = path.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
    values[leaf] = value


def parse(hint: Any, text: str, path: str) -> Any:
    """Read command-line `text` as the hinted type.

    Raises:
        ConfigError: the text cannot be read as that type; the message names `path`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if types.NoneType in args and text.lower() == "none":
            return None
        option = next(a for a in args if a is not types.NoneType)  # of several, text is the first
        if part_of(option) is not None:
            fields = ", ".join(f"{path}.{name}" for name in hints_for(option, {}))
            raise ConfigError(f"{path}={text}: is a group of fields; set {fields}, or none.")
        return parse(option, text, path)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        return check(hint, [parse(args[0], part, path) for part in parts], path)
    value: Any = text
    try:
        if hint is bool:
            value = {"true": True, "false": False}[text.lower()]
        elif hint is int:
            value = float(text) if any(c in text.lower() for c in ".e") else int(text)
        elif hint is float:
            value = float(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{path}={text}: must be {describe(hint)}.") from None
    return check(hint, value, path)
