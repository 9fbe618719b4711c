"""What a table's rows show by themselves: a log, a sweep of settings, repeated data, experts.

Each finding is a note; a reader of the notes decides. Only repeated data add a column.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.io import columns as choice
from analysis.io.cells import read_cells
from analysis.io.columns import Column, simplify
from analysis.io.frames import numbers, rows

_MANY = 10
"""Losses of one model at so many token counts, falling all along, look like one run's log."""
SETTINGS = (
    "lr", "learning_rate", "peak_lr", "max_lr", "base_lr", "batch_size", "global_batch_size",
    "batch_tokens", "tokens_per_batch", "tokens_per_step", "bs", "weight_decay", "wd", "warmup",
    "warmup_steps",
)  # fmt: skip
"""Names of hyper-parameters that people sweep."""
_ACTIVE = ("active_params", "params_active", "n_active", "active_parameters", "n_params_active")
_EPOCHS = ("epochs", "num_epochs", "n_epochs", "num_train_epochs", "passes")
_AGAIN = 1.5
"""Passes over the data from which they are called repeated."""


def like_a_log(kept: pd.DataFrame, frame: pd.DataFrame, step: Column | None) -> list[str]:
    """A warning where rows that count as runs look like checkpoints of a few runs."""
    ask = (
        "each row counts as a run of its own, which makes intervals too narrow if they are not: "
        "name what tells runs apart with --runs (--last-per keeps the last row of each)"
    )
    if step is not None:
        values = len(set(map(str, frame[step.name].loc[kept.index])))
        if values > max(2, 0.1 * len(kept)) or values >= _MANY:
            return [f"WARNING: {step.name!r} looks like the steps of a log; {ask}"]
    if not {"tokens", "n_params", "loss"} <= {*kept.columns}:
        return []
    if falling := _falling(kept):
        return [f"WARNING: {falling} model size(s) have {_MANY} or more rows whose loss falls with "
                f"tokens, as the checkpoints of one run do; {ask}"]  # fmt: skip
    return []


def _falling(kept: pd.DataFrame) -> int:
    """Models with many token counts, over which the loss falls nearly all the way."""
    table = kept[["arch", "n_params", "tokens", "loss"]]
    many = table.groupby(["arch", "n_params"])["tokens"].transform("nunique") >= _MANY
    ordered = rows(table, many).sort_values(["arch", "n_params", "tokens"], kind="stable")
    if not len(ordered):
        return 0
    step = ordered.groupby(["arch", "n_params"])["loss"].diff()
    fell = (step < 0).where(step.notna()).astype(float)
    shares = fell.groupby([ordered["arch"], ordered["n_params"]]).mean()
    return int((shares > 0.9).sum())


def swept(points: pd.DataFrame) -> list[str]:
    """Columns of hyper-parameters that take several values at one N and D."""
    if not {"n_params", "tokens", "loss"} <= {*points.columns}:
        return []
    found: list[str] = []
    for name in points.columns:
        if choice.bare(str(name)) not in SETTINGS:
            continue
        cells = points.groupby(["arch", "n_params", "tokens"])[name].nunique()
        if len(cells) and float((cells > 1).mean()) > 0.3:
            found.append(str(name))
    return found


def like_a_sweep(kept: pd.DataFrame) -> list[str]:
    """A warning where a law would be fitted through badly tuned runs as well as good ones."""
    names = swept(kept)
    if not names:
        return []
    quoted = " and ".join(repr(n) for n in names)
    cells = kept.groupby(["arch", "n_params", "tokens"]).ngroups
    return [
        f"WARNING: {quoted} takes several values at one N and D: a sweep, {len(kept)} rows of "
        f"{cells} models. A law through all of them lies above the tuned runs: keep the best of "
        f"each with --best-per N,D; linscale tuning fits the best {names[0]!r} itself"
    ]


def repeated(points: pd.DataFrame) -> list[str]:
    """Notes where data were read more than once; from a column of epochs follow unique tokens."""
    if "tokens" not in points:
        return []
    if "unique_tokens" in points:
        with np.errstate(divide="ignore", invalid="ignore"):
            passes = numbers(points, "tokens") / numbers(points, "unique_tokens")
        source = ""
    else:
        named = [c for c in points.columns if simplify(str(c)) in _EPOCHS]
        if not named:
            return []
        passes = read_cells(points[named[0]], named[0], count=False).values
        if not np.nanmax(passes, initial=0.0) > _AGAIN:
            return []
        points["unique_tokens"] = numbers(points, "tokens") / np.fmax(passes, 1.0)
        source = f"; unique tokens = D / {named[0]!r}"
    again = int((passes > _AGAIN).sum())
    if not again:
        return []
    return [
        f"{again} row(s) read their data up to {np.nanmax(passes):.3g} times{source}: a repeated "
        "token is worth less than a new one, and --form data_constrained has terms for it"
    ]


def experts(frame: pd.DataFrame, n_column: Column | None) -> list[str]:
    """A note where active and total parameters differ: a mixture of experts."""
    if n_column is None:
        return []
    active = [str(c) for c in frame.columns if choice.bare(str(c)) in _ACTIVE]
    if not active or active[0] == n_column.name:
        return []
    n = read_cells(frame[n_column.name], n_column.name, count=True).values
    some = read_cells(frame[active[0]], active[0], count=True).values
    if not np.nanmax(n / some, initial=1.0) > 1.01:
        return []
    return [
        f"a mixture of experts: {active[0]!r} is up to {np.nanmax(n / some):.3g} times smaller than "
        f"N = {n_column.name!r}. Compute follows the active parameters (--params {active[0]}, or a "
        "column of C); models of another number of experts need a law of their own (--group)"
    ]
