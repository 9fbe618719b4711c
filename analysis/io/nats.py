"""Losses that cannot be nats per token: perplexities, and runs that went far astray."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.columns import simplify
from analysis.units import Array

HIGHEST = 15.0
"""Nats per token: ln of a vocabulary of three million. No trained model has a higher loss."""
_UNLIKELY = 6.5
"""A table of trained models has a loss below this; a perplexity of this is one of 1.9 nats."""
_SEVERAL, _SHARE = 2, 0.1
"""So many losses above `HIGHEST`, and such a share of all, are not the odd run that diverged."""
_REMEDY = (
    "A loss is in nats per token, the logarithm of perplexity: give a column of losses with --loss"
)


def of_perplexity(name: str) -> bool:
    """Whether a column's name says perplexity."""
    parts = simplify(name).split("_")
    return "perplexity" in parts or parts[-1] == "ppl" or parts[0] == "ppl"


def too_high(values: Array, used: Array, name: str, notes: list[str]) -> list[str]:
    """Why each loss cannot be nats; "" where it can.

    Args:
        values: the losses of all rows.
        used: those of the rows that nothing else leaves out.
        name: of the column.
        notes: gets a warning where all losses are high.

    Raises:
        AnalysisError: the name says perplexity, or the column as a whole reads like it.
    """
    used = used[np.isfinite(used)]
    if not len(used):
        return [""] * len(values)
    middle, high = float(np.median(used)), int((used > HIGHEST).sum())
    if of_perplexity(name) or middle > HIGHEST:
        raise AnalysisError(
            f"column {name!r} has a median of {middle:.4g}: is this perplexity? {_REMEDY}"
        )
    if high >= _SEVERAL and high >= _SHARE * len(used):
        raise AnalysisError(
            f"column {name!r}: {high} of {len(used)} losses are above {HIGHEST:g} nats, up to "
            f"{used.max():.4g}: is this perplexity? {_REMEDY}. If these runs diverged, leave them "
            f"out with --where '{name} < {HIGHEST:g}'"
        )
    if used.min() > _UNLIKELY:
        notes.append(
            f"WARNING: the lowest loss is {used.min():.4g} nats, more than trained language models "
            "have: is this perplexity, or a sum?"
        )
    return [
        f"a loss of {v:.6g} nats: diverged, or is this perplexity?"
        if v > HIGHEST and np.isfinite(v) else ""
        for v in values
    ]  # fmt: skip


def perplexities(frame: pd.DataFrame) -> list[str]:
    """Columns whose names say perplexity."""
    return [str(name) for name in frame.columns if of_perplexity(str(name))]
