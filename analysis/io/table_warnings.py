"""What a table's rows show by themselves: a log, a sweep of settings, repeated data, experts.

Each finding is a note; a reader of the notes decides. Only repeated data add a column.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.io import columns as choice
from analysis.io.cells import read_cells
from analysis.io.columns import Column, simplify
from analysis.io.frames import by, numbers

_MANY = 10
"""Losses of one model at so many token counts, falling all along, look like one run's log."""
_MANY_D = 25
"""So many token counts of one model are more than designs of one-row runs have."""
SETTINGS = (
    "lr", "learning_rate", "peak_lr", "max_lr", "base_lr", "batch_size", "global_batch_size",
    "batch_tokens", "tokens_per_batch", "tokens_per_step", "bs", "weight_decay", "wd", "warmup",
    "warmup_steps",
)  # fmt: skip
"""Names of hyper-parameters that people sweep."""
_EXPERTS = 1.01
"""Total over active parameters from which a model is one of experts."""
_EPOCHS = ("epochs", "num_epochs", "n_epochs", "num_train_epochs", "passes")
_CELL = ("arch", "n_params", "tokens")
_SWEPT = 0.3
"""Share of the models that several values of a setting must have been tried with."""
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
        models = len(set(_codes(kept, "arch", "n_params"))) if "n_params" in kept else 1
        many = values > max(2, 0.1 * len(kept)) or values >= _MANY
        if many and len(kept) >= _MANY * models:  # fewer rows a model are as often runs
            return [f"WARNING: {step.name!r} looks like the steps of a log; {ask}"]
    if not {"tokens", "n_params", "loss"} <= {*kept.columns}:
        return []
    if falling := _falling(kept):
        return [f"WARNING: {falling} model size(s) have {_MANY} or more rows whose loss falls with "
                f"tokens, as the checkpoints of one run do; {ask}"]  # fmt: skip
    pairs = np.unique(np.stack([_codes(kept, "arch", "n_params"), _codes(kept, "tokens")]), axis=1)
    most = int(np.bincount(pairs[0]).max(initial=0))
    if most >= _MANY_D:
        return [f"WARNING: one model size has {most} token counts, as the checkpoints of several "
                f"runs do; {ask}"]  # fmt: skip
    return []


def _falling(kept: pd.DataFrame) -> int:
    """Models with many token counts, over which the loss falls nearly all the way."""
    ordered = by(kept, "arch", "n_params", "tokens")
    model = _codes(ordered, "arch", "n_params")
    tokens, losses = numbers(ordered, "tokens"), numbers(ordered, "loss")
    within = model[1:] == model[:-1]  # neighbours of one model
    size = int(model.max(initial=-1)) + 1
    more = np.bincount(model[1:][within & (np.diff(tokens) > 0)], minlength=size)
    steps = np.bincount(model[1:][within], minlength=size)
    falls = np.bincount(model[1:][within & (np.diff(losses) < 0)], minlength=size)
    return int(((more + 1 >= _MANY) & (falls > 0.9 * steps)).sum())


def _codes(frame: pd.DataFrame, *names: str) -> NDArray[np.int64]:
    """A number for each distinct combination of columns."""
    code = np.zeros(len(frame), dtype=np.int64)
    for name in names:
        own, distinct = pd.factorize(frame[name])
        code = code * (len(distinct) + 1) + own
    return np.unique(code, return_inverse=True)[1].astype(np.int64)


def swept(points: pd.DataFrame) -> list[str]:
    """Columns of hyper-parameters that take several values at one N and D."""
    if not {"n_params", "tokens", "loss"} <= {*points.columns}:
        return []
    found: list[str] = []
    for name in points.columns:
        if choice.bare(str(name)) not in SETTINGS:
            continue
        cell, value = _codes(points, *_CELL), _codes(points, name)
        if "run_id" in points and len(set(_codes(points, "run_id", name))) > len(
            set(_codes(points, "run_id"))
        ):
            continue  # it changes within runs, as a schedule does
        pairs = np.unique(np.stack([cell, value]), axis=1)[0]
        if len(pairs) and float((np.bincount(pairs) > 1).mean()) > _SWEPT:
            found.append(str(name))
    return found


def like_a_sweep(kept: pd.DataFrame) -> list[str]:
    """A warning where a law would be fitted through badly tuned runs as well as good ones."""
    names = swept(kept)
    if not names:
        return []
    quoted = " and ".join(repr(n) for n in names)
    cells = len(set(_codes(kept, *_CELL)))
    return [
        f"WARNING: {quoted} {'takes' if len(names) == 1 else 'take'} several values at one N and "
        f"D: a sweep, {len(kept)} rows of {cells} models. A law through all of them lies above "
        f"the tuned runs: keep the best of each with --best-per N,D; linscale tuning fits the best "
        f"{names[0]!r} itself"
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


def further_columns(kept: pd.DataFrame) -> list[str]:
    """Notes where total parameters, bits or shares differ between rows, and the forms for them."""
    found: list[str] = []
    if {"total_params", "n_params"} <= {*kept.columns}:
        ratio = numbers(kept, "total_params") / numbers(kept, "n_params")
        if np.nanmax(ratio, initial=1.0) > _EXPERTS:
            found.append(
                "a mixture of experts: total parameters are up to "
                f"{np.nanmax(ratio):.3g} times the active ones, which are N. --form experts has "
                "terms for the ratio; other forms take models of all ratios as alike (--group)"
            )
    for name, form in (("bits", "precision"), ("share", "mixture")):
        if name in kept and len(np.unique(numbers(kept, name))) > 1:
            found.append(f"{name} differ between rows: --form {form} has a term for them; other "
                         "forms take all rows as alike (--where, --group)")  # fmt: skip
    return found


def forms_of(kept: pd.DataFrame) -> list[str]:
    """The forms that the columns of a table allow beyond those in N, D and C."""
    found: list[str] = []
    if {"unique_tokens", "tokens"} <= {*kept.columns}:
        again = numbers(kept, "tokens") / numbers(kept, "unique_tokens") > _AGAIN
        found += ["data_constrained"] * bool(again.any())
    if {"total_params", "n_params"} <= {*kept.columns}:
        ratio = numbers(kept, "total_params") / numbers(kept, "n_params")
        found += ["experts"] * bool(len(np.unique(np.round(np.log(ratio), 6))) > 1)
    found += ["precision"] * ("bits" in kept and len(np.unique(numbers(kept, "bits"))) > 1)
    found += ["mixture"] * ("share" in kept and len(np.unique(numbers(kept, "share"))) > 2)
    return found
