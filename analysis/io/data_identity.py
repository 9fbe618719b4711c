"""Runs whose losses cannot be compared because their data are not the same.

Two kinds are left out of fits, each with its reason:

1. A run that went on with other data than it began with (`linscale run --accept-data-change`): its
   environment.json lists the change.
2. A run whose corpus, validation blocks or tokenizer have another hash than those of most runs with
   the same data settings. Files, or a tokenizer, were changed between runs of one sweep.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from analysis.io.sweep_files import Place
from linscale.json_reader import BadRecord, find_object
from linscale.texts import clean, quote

HASHES = {
    "corpus_sha256": "corpus",
    "validation_sha256": "validation blocks",
    "tokenizer_sha256": "tokenizer",
}
"""Fields of the fingerprint in environment.json, and what they are of."""
_OF_TRAINING = ("batch_sequences",)
"""Fields of `data` in config.json that do not decide what the data are."""

Marks = tuple[str | None, ...]


def other_data(root: Place, run_ids: Iterable[str]) -> dict[str, str]:
    """Run -> why its data are not those of the others; runs that agree are not in it.

    Args:
        root: the sweep; only `/`, `read_text` and the names of its files are used.
        run_ids: of the runs that are compared.
    """
    reasons: dict[str, str] = {}
    groups: dict[str, dict[str, Marks]] = {}
    for run_id in run_ids:
        environment = _object(root / run_id / "environment.json")
        changes = environment.get("data_changes")
        if isinstance(changes, list) and changes:
            steps = [quote(c.get("step")) for c in changes if isinstance(c, dict)]
            reasons[run_id] = (
                f"its data changed at step {', '.join(steps)}, which --accept-data-change allowed"
            )
            continue
        data = environment.get("data")
        if isinstance(data, dict):
            settings = _object(root / run_id / "config.json").get("data")
            known = settings if isinstance(settings, dict) else {}
            key = json.dumps({k: v for k, v in known.items() if k not in _OF_TRAINING})
            marks = tuple(str(data[name]) if name in data else None for name in HASHES)
            groups.setdefault(key, {})[run_id] = marks
    for runs in groups.values():
        (usual, count), *others = Counter(runs.values()).most_common()
        if others:
            reasons |= {
                run_id: _reason(marks, usual, count)
                for run_id, marks in runs.items()
                if marks != usual
            }
    return reasons


def _reason(marks: Marks, usual: Marks, count: int) -> str:
    what = [
        f"{label} {clean(str(mine)[:8])}, not {clean(str(theirs)[:8])}"
        for label, mine, theirs in zip(HASHES.values(), marks, usual, strict=True)
        if mine != theirs
    ]
    others = "the run" if count == 1 else f"{count} runs"
    return f"other data than {others} with the same settings: {'; '.join(what)}"


def _object(path: Place) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read, of which the reader of records
    tells."""
    try:
        return find_object(path).values
    except BadRecord:
        return {}
