"""JSON that shows whether it was changed: one of its fields is a hash of the others.

    sealed({"step": 38})             -> {"step": 38, "sha256": "..."}
    is_whole({"step": 30, "sha256": "..."})  -> False

A seal finds damage. It is no signature: whoever changes a file on purpose can seal it again.
Files of earlier versions have none, and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""Field that holds the hash of the others."""
LINE_SEAL = "line_sha256"
"""The same in lines of JSON that have a `sha256` of something else."""


def sealed(values: Mapping[str, Any], field: str = SEAL) -> dict[str, Any]:
    """Plain JSON with its seal."""
    return {**values, field: _hash(values)}


def is_whole(values: Mapping[str, Any], field: str = SEAL) -> bool:
    """Whether a seal is that of the other fields, in whatever order; True where there is none."""
    rest = {name: value for name, value in values.items() if name != field}
    return values.get(field) in (None, _hash(rest))


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()
