"""Reading back what a result's `to_json` wrote: damage is named in one paragraph.

    with saved(text, "LawFit") as record:
        theta = array(record, "theta")

A field that is not there, one that holds no numbers, and text that is no JSON are each an
`AnalysisError` with the name of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.units import Array
from linscale.json_reader import BadRecord, parse_object

_REMEDY = "give the text that `to_json` returned, whole and unchanged"


class _Fields(dict[str, Any]):
    """An object of the record, at any depth."""

    def __missing__(self, name: str) -> Any:
        raise AnalysisError(f"it has no field {name!r}")


def _with_names(value: Any) -> Any:
    if isinstance(value, dict):
        return _Fields({name: _with_names(inner) for name, inner in value.items()})
    return [_with_names(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def saved(text: str, kind: str) -> Iterator[dict[str, Any]]:
    """The record in a text, while a result of some kind is made of it.

    Raises:
        AnalysisError: the text is no JSON object, or nothing can be made of it.
    """
    try:
        parsed = parse_object(text, "the text")
    except (BadRecord, AttributeError, TypeError) as error:
        raise AnalysisError(f"no saved {kind}: {error}; {_REMEDY}") from None
    try:
        yield _with_names(parsed.values)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise AnalysisError(f"no saved {kind}: {error}; {_REMEDY}") from error


def array(record: Mapping[str, Any], name: str) -> Array:
    """A field that holds numbers.

    Raises:
        AnalysisError: it does not.
    """
    value = record[name]
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise AnalysisError(f"field {name!r} is {value!r:.60}, not numbers") from None
