"""The one language in which commands choose runs: `--only 'size=1B arch=llama'`.

Conditions are separated by spaces or commas and must all hold. Each is FIELD=PATTERN or
FIELD!=PATTERN, a comparison of numbers (`seed<2`, `model.dim>=512`), or a bare pattern, which is a
part of a run's id. In patterns `*` and `?` stand for anything, and `|` separates alternatives:
`size=70M|160M`.

Fields are `run_id`, `name`, `arch`, `size`, `seed`, `state` where it is known, and every field of a
run by its dotted name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from linscale.errors import LinscaleError
from linscale.layer_groups import group

HELP = (
    "Only these runs: 'size=1B arch=llama', 'seed<2', 'size=70M|160M', or a part of the run's id; "
    "* and ? stand for anything."
)
_CONDITION = re.compile(r"([\w.]+)(!=|<=|>=|=|<|>)(.*)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}
_Item = TypeVar("_Item")


class SelectionError(LinscaleError, ValueError):
    """A selection that cannot be understood, or that leaves nothing."""


def fields_of(config: Mapping[str, Any], **more: object) -> dict[str, object]:
    """The fields of a run from its configuration as JSON: dotted names, and the short ones."""
    found: dict[str, object] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = value

    walk(config, "")
    arch, mixers = str(found.get("model.arch", "")), found.get("model.mixers")
    found.setdefault("arch", group(arch, str(mixers) if mixers else None))
    return found | more


def matches(only: str | None, fields: Mapping[str, object]) -> bool:
    """Whether a run with these fields is chosen; None and '' choose all.

    Raises:
        SelectionError: a field that the run does not have, or a comparison with what is no number.
    """
    text = re.sub(r"\s*(!=|<=|>=|=|<|>)\s*", r"\1", only or "")
    return all(_holds(part, fields, only) for part in re.split(r"[\s,]+", text) if part)


def chosen(
    items: Iterable[_Item], only: str | None, fields: Callable[[_Item], Mapping[str, object]]
) -> list[_Item]:
    """The items that a selection leaves.

    Raises:
        SelectionError: see `matches`; or none is left.
    """
    known = list(items)
    if not only:
        return known
    each = [fields(item) for item in known]
    # A run that has not begun says less of itself than the others: it is not chosen by that.
    blank = dict.fromkeys((name for found in each for name in found), "")
    kept = [
        item for item, found in zip(known, each, strict=True) if matches(only, {**blank, **found})
    ]
    if known and not kept:
        raise SelectionError(f"--only {only!r}: leaves none of {len(known)} runs.")
    return kept


def _holds(part: str, fields: Mapping[str, object], only: str | None) -> bool:
    found = _CONDITION.fullmatch(part)
    if found is None:
        return any(fnmatchcase(str(fields["run_id"]), f"*{each}*") for each in part.split("|"))
    name, operator, wanted = found.groups()
    if name not in fields:
        near = difflib.get_close_matches(name, list(fields), n=1)
        known = ", ".join(key for key in fields if "." not in key)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {known}."
        raise SelectionError(f"--only {only!r}: no field {name!r}; {hint}")
    value = fields[name]
    if operator in ("=", "!="):
        same = any(fnmatchcase(str(value), pattern) for pattern in wanted.split("|"))
        return same == (operator == "=")
    if value == "":
        return False
    try:
        return _COMPARE[operator](float(str(value)), float(wanted))
    except ValueError:
        raise SelectionError(
            f"--only {only!r}: {name}={value} and {wanted!r} are not both numbers; < and > compare "
            "numbers."
        ) from None
