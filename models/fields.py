"""Typed fields of configurations: check values, read them from JSON, suggest names.

The dataclasses of `models.config` and `scaling.config` carry plain type hints. This module reads
them, so that a value from Python, from JSON or from the command line passes through one check:

1. `check(hint, value, path)` accepts or coerces a Python or JSON value (3 -> 3.0 for a float field,
   3e11 -> 300000000000 for an int field, list -> tuple), or raises `ConfigError`.
2. `Part`, the base of the parts of a configuration, checks all of its fields when it is made.
3. `build(cls, values, prefix)` makes a dataclass, nested ones included, from plain JSON types.
4. `identity(part)` is what a configuration is hashed by: its values, less those later fields
   (`LATER`) that stand at their default.
5. `unknown_name(path, known)` is the error for a name that does not exist, with the nearest one;
   `unknown_option` that for an option that an architecture does not have; `nearest_divisor` is the
   remedy for a number that divides another badly.

How the text of a command line becomes values: `scaling.config.fields`.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from linscale.json_reader import as_number
from models.errors import ConfigError

LATER = {"later": True}
"""Metadata of fields that came after the first runs were named. Such a field enters the identity of
a run only where it differs from its default: a new option renames no run that does without it."""


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
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of NumPy's, as its ranges and draws give
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
        if not math.isnan(number := as_number(value)):
            return number
    elif hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    raise ConfigError(f"{path}={value!r}: must be {describe(hint)}.")


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


def unknown_option(path: str, arch: str, known: Iterable[str]) -> ConfigError | None:
    """The error for an option that an architecture does not have, with those that it has; None for
    another name."""
    options = "model.options."
    if not path.startswith(options):
        return None
    own = [name for name in known if name.startswith(options)]
    near = difflib.get_close_matches(path, own, n=1)
    has = ", ".join(name.removeprefix(options) for name in sorted(own)) or "none"
    remedy = f"did you mean {near[0]}?" if near else f"its options: {has}."
    return ConfigError(f"{path}: no such field with model.arch={arch}; {remedy}")


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a number that is nearest to the wanted one; the smaller of two."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    large = [number // n for n in small]
    return min(small + large, key=lambda n: (abs(n - wanted), n))


class Part:
    """Checks the type of every field of a configuration part, then its own rules."""

    _prefix = ""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = check(hint, getattr(self, name), self._prefix + name)
            object.__setattr__(self, name, value)
        self._validate()

    def _validate(self) -> None:
        """Rules beyond types; raises ConfigError."""

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{self._prefix}{name}={getattr(self, name)!r}: must be {rule}.")


def hints_for(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Field name -> type hint, where `values` of some fields decide the types of others.

    A class says so with a class method `field_types(values)`.
    """
    decide = getattr(cls, "field_types", None)
    return hints(cls) if decide is None else hints(cls) | decide(values)


def part_of(hint: Any) -> type[Any] | None:
    """The dataclass that a field holds, or may hold; None where it holds none."""
    return next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)  # pyright: ignore[reportReturnType]


def not_a_table(path: str, value: Any) -> ConfigError:
    """The error for a value in the place of a part; an empty path is the whole configuration."""
    return ConfigError(f"{path or 'configuration'}={value!r}: must be a table of fields.")


def build(cls: type[Any], values: Any, prefix: str = "") -> Any:
    """A dataclass, nested ones included, from plain JSON types.

    Args:
        cls: the dataclass.
        values: field name -> value; fields left out take their defaults.
        prefix: of the fields' names in messages, such as `model.`.

    Raises:
        ConfigError: an unknown field, a missing one, or a value that cannot work.
    """
    if not isinstance(values, Mapping):
        raise not_a_table(prefix.rstrip("."), values)
    table = cast("Mapping[str, Any]", values)
    known = {f.name: f for f in fields(cls)}
    types_of, arguments = hints_for(cls, table), dict[str, Any]()
    for name, value in table.items():
        if name not in known:
            raise unknown_name(prefix + name, [prefix + n for n in known])
        hint = types_of[name]
        part = part_of(hint)
        if part is not None and (part is hint or isinstance(value, Mapping)):
            arguments[name] = build(part, value, f"{prefix}{name}.")
        else:
            arguments[name] = check(hint, value, prefix + name)
    missing = [
        prefix + f.name
        for f in known.values()
        if f.name not in arguments and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: has no default; give a value.")
    try:
        return cls(**arguments)
    except ConfigError as error:  # a part that stands elsewhere than it usually does
        own, text = getattr(cls, "_prefix", prefix), str(error)
        if own == prefix or not text.startswith(own):
            raise
        raise ConfigError(prefix + text.removeprefix(own)) from error


def identity(part: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Plain JSON types of a dataclass, less the later fields that stand at their default.

    Args:
        part: the dataclass.
        without: fields of it that are left out.
    """
    return json.loads(json.dumps(_named_values(part, without)))


def _named_values(part: Any, without: Collection[str] = ()) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for known in fields(part):
        if known.name in without:
            continue
        value = getattr(part, known.name)
        if not (known.metadata.get("later") and value == known.default):
            values[known.name] = _named_values(value) if is_dataclass(value) else value
    return values
