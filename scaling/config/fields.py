"""Typed fields of the run configuration: check values, parse them from text, suggest names.

The dataclasses of `scaling.config.run` and `models.config` carry plain type hints. This module
reads them, so that a value from Python, from JSON or from the command line passes through one
check:

1. `check(hint, value, path)` accepts or coerces a Python or JSON value (3 -> 3.0 for a float field,
   3e11 -> 300000000000 for an int field, list -> tuple), or raises `ConfigError`.
2. `parse(hint, text, path)` reads command-line text by the same hints (`none`, `true`, `1e6`,
   `0.9,0.95`) and then checks it.
3. `unknown_name(path, known)` is the error for a name that does not exist, with the nearest one.
4. `identity(part)` is what a configuration is hashed by: its values, less those later fields
   (`models.config.LATER`) that stand at their default.
"""

from __future__ import annotations

import difflib
import functools
import json
import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from models.config import ConfigError


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type hint of a dataclass."""
    return get_type_hints(cls)


def describe(hint: Any) -> str:
    """A type hint in the words of an error message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {describe(args[0])}"
        return f"{len(args)} values, each {describe(args[0])}"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def check(hint: Any, value: Any, path: str) -> Any:
    """Return `value` as the hinted type.

    Raises:
        ConfigError: the value is not of that type; the message names `path`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in args:
            return value
    elif origin in (Union, types.UnionType):
        for option in args:
            try:
                return check(option, value, path)
            except ConfigError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            items = list(cast("Iterable[Any]", value))
            if args[-1] is Ellipsis:
                return tuple(check(args[0], item, path) for item in items)
            if len(items) == len(args):
                return tuple(check(a, item, path) for a, item in zip(args, items, strict=True))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise ConfigError(f"{path}={value!r}: must be {describe(hint)}.")


def parse(hint: Any, text: str, path: str) -> Any:
    """Read command-line `text` as the hinted type.

    Raises:
        ConfigError: the text cannot be read as that type; the message names `path`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if types.NoneType in args and text.lower() == "none":
            return None
        (option,) = (a for a in args if a is not types.NoneType)
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


def unknown_name(path: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown dotted name; suggests the nearest of `known`."""
    names = list(known)
    leaf = path.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(path, names, n=1) or [
        name
        for close in difflib.get_close_matches(leaf, [n.rsplit(".", 1)[-1] for n in names], n=1)
        for name in names
        if name.rsplit(".", 1)[-1] == close
    ]
    remedy = f"did you mean {near[0]}?" if near else f"known names: {', '.join(sorted(names))}."
    return ConfigError(f"{path}: no such field; {remedy}")


def identity(part: Any) -> dict[str, Any]:
    """Plain JSON types of a dataclass, less the later fields that stand at their default."""
    values: dict[str, Any] = {}
    for known in fields(part):
        value = getattr(part, known.name)
        if not (known.metadata.get("later") and value == known.default):
            values[known.name] = identity(value) if is_dataclass(value) else value
    return json.loads(json.dumps(values))
