"""The milestones of a finished run, held against everything else that its record says of them.

A milestone is one line of milestones.jsonl, and all that a fit knows of it. What it says stands in
the record more than once, so that a line that was lost or changed is found:

1. the line holds a hash of itself (records of earlier versions do not);
2. the horizons are those of config.json, all of them, and each is a whole number of steps;
3. metrics.jsonl has a validation line at the same tokens with the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.io.jsonlines import Columns, read_columns, read_records
from analysis.io.sweep_files import Place
from linscale.horizons import whole_steps
from linscale.json_reader import COUNT, BadRecord, Fields, as_number, read_object
from linscale.sealed import LINE_SEAL, is_whole
from linscale.texts import quote

FILE = "milestones.jsonl"


def horizons(config: Fields) -> list[int] | None:
    """The tokens at which a run has milestones; None where its configuration does not list them.

    Raises:
        BadRecord: a field of config.json is not what it should be.
    """
    budget, data = config.part("budget"), config.part("data")
    listed = budget.values.get("horizons")
    if not isinstance(listed, list):
        return None
    found = [as_number(value) for value in [*listed, budget.values.get("tokens")]]
    if not all(1 <= value <= COUNT for value in found):
        raise BadRecord(f"config.json budget: horizons is {quote(listed)}, not a list of tokens")
    per_step = data.whole("sequence_length", 1) * data.whole("batch_sequences", 1)
    return sorted({whole_steps(int(value), per_step) * per_step for value in found})


def problems(
    records: list[dict[str, Any]], columns: Columns, expected: list[int] | None, per_step: int
) -> Iterator[tuple[float, str]]:
    """What is wrong with the milestones of a finished run: tokens and a reason, in words.

    Args:
        records: the lines of milestones.jsonl that can be read.
        columns: of metrics.jsonl: `tokens`, `loss`, `bpb` and `split`.
        expected: of `horizons`.
        per_step: tokens of an optimizer step.
    """
    of_validation = columns["split"] == "validation"
    measured = {
        tokens: (loss, bpb)
        for tokens, loss, bpb in zip(
            *(columns[name][of_validation] for name in ("tokens", "loss", "bpb")), strict=True
        )
    }
    seen: set[float] = set()
    for record in records:
        tokens = as_number(record.get("tokens"))
        seen.add(tokens)
        why = _wrong(record, tokens, expected, per_step) or _differs(record, measured.get(tokens))
        if why:
            yield tokens, f"{FILE}: {why}"
    for tokens in expected or ():
        if tokens not in seen:
            yield float(tokens), f"{FILE}: the line of this horizon is missing"


def problems_of_run(run: Place) -> list[str]:
    """What is wrong with the milestones of a finished run, a sentence each, for `linscale verify`.

    Args:
        run: its directory.
    """
    try:
        config = read_object(run / "config.json")
        data, expected = config.part("data"), horizons(config)
        per_step = data.whole("sequence_length", 1) * data.whole("batch_sequences", 1)
    except BadRecord as error:
        return [str(error)]
    columns, _ = read_columns(
        run / "metrics.jsonl", numbers=("tokens", "loss", "bpb"), words=("split",)
    )
    records, _ = read_records(run / FILE)
    found = problems(records, columns, expected, per_step)
    return [f"{why} ({tokens:.0f} tokens)" for tokens, why in found]


def _wrong(
    record: dict[str, Any], tokens: float, expected: list[int] | None, per_step: int
) -> str | None:
    """What is wrong with a line by itself."""
    if not is_whole(record, LINE_SEAL):
        return "the line does not have the content that was written"
    if expected is not None and tokens not in expected:
        return f"tokens is {quote(record.get('tokens'))}, none of the run's horizons"
    step = as_number(record.get("step"))
    if expected is not None and not math.isnan(step) and step * per_step != tokens:
        return f"step is {quote(record.get('step'))}, and {tokens:.0f} tokens are another step"
    return None


def _differs(record: dict[str, Any], measured: tuple[float, float] | None) -> str | None:
    """Where a line is not what metrics.jsonl says of the same tokens."""
    if measured is None:
        return None
    for name, there in zip(("val_loss", "val_bpb"), measured, strict=True):
        here = as_number(record.get(name))
        if np.isfinite([here, there]).all() and here != there:
            return f"{name} is {here:g}, and metrics.jsonl says {there:g}"
    return None
