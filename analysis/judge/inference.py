"""The cheapest model for a loss and a demand: training and inference together.

    cheapest(law, loss, demand, serving) -> Deployment        (Sardana et al. 2401.00448)
        minimise  f(N) D + g(N) T  over N and D with L(N, D) = loss
        f   training FLOPs a token, as the law's optima take it
        g   decoding FLOPs a token at one context, of the architecture itself
        T   tokens to be generated

A larger demand moves the optimum to smaller models trained for longer. What g is at a long context
is where mixers differ: attention grows with the context, a bounded state does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.io.cells import read_cells
from analysis.io.columns import listed
from analysis.io.frames import groups, numbers, rows, where
from analysis.judge.least_cost import interval_of, least_cost, outside_of
from analysis.laws.compute_model import ComputeModel, fit_compute_model
from analysis.units import LEVEL, Array


@dataclass(frozen=True)
class Serving:
    """What one architecture costs at one context, as functions of N."""

    context: int
    flops: ComputeModel
    """Decoding FLOPs of the token at the end of the context."""
    kept: ComputeModel | None
    """Bytes of state and cache that a sequence holds there; None where they are not known."""


def serving(n: Array, flops: Array, kept: Array, context: int) -> Serving:
    """From sizes (m,), decoding FLOPs a token (m,) and bytes kept (m,), all positive."""
    return Serving(context, fit_compute_model(n, flops), fit_compute_model(n, kept))


def serving_of_table(
    points: pd.DataFrame, context: int, *, decoding: str | None = None, kept: str | None = None
) -> dict[str, Serving]:
    """What decoding costs by architecture, from columns of a table of runs.

    Args:
        points: n_params, arch and the columns named.
        context: at which they hold, in tokens.
        decoding: column of FLOPs a token; None takes 2 N: every weight once, and no context.
        kept: column of bytes of state and cache a sequence.

    Raises:
        AnalysisError: no such column, or one without positive numbers.
    """
    found: dict[str, Serving] = {}
    for name in groups(points, "arch"):
        own = where(points, arch=name)
        own = rows(own, np.nan_to_num(numbers(own, "n_params")) > 0)
        n = numbers(own, "n_params")
        flops = 2 * n if decoding is None else _positive(own, decoding, "--decoding")
        state = None if kept is None else _positive(own, kept, "--kept")
        found[name] = Serving(context, fit_compute_model(n, flops),
                              None if state is None else fit_compute_model(n, state))  # fmt: skip
    return found


def _positive(points: pd.DataFrame, name: str, option: str) -> Array:
    if name not in points:
        raise AnalysisError(f"there is no column {name!r} for {option}. Columns: {listed(points)}")
    values = read_cells(points[name], name, count=True).values
    if not (np.isfinite(values) & (values > 0)).all():
        raise AnalysisError(f"column {name!r} ({option}) must hold a positive number in every row")
    return values


@dataclass(frozen=True)
class Deployment:
    """The cheapest model of one architecture."""

    n: float
    d: float
    training: float
    """FLOPs."""
    inference: float
    """FLOPs for the whole demand."""
    kept: float
    """Bytes of state and cache a sequence; NaN where they are not known."""
    total_draws: Array
    """Total FLOPs of every bootstrap refit (b,); infinite where it cannot reach the loss."""
    outside: str
    """In words, where N lies outside the sizes fitted, or N D beyond the largest."""

    @property
    def total(self) -> float:
        """FLOPs."""
        return self.training + self.inference

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Of the total."""
        return interval_of(self.total_draws, level)


def cheapest(law: LawFit, loss: float, demand: float, at: Serving) -> Deployment:
    """The model that reaches `loss` and generates `demand` tokens with the fewest FLOPs.

    Raises:
        AnalysisError: a law without N and D, or one whose floor lies above the loss.
    """
    if not (np.isfinite(loss) and loss > 0 and np.isfinite(demand) and demand >= 0):
        raise AnalysisError(f"loss {loss!r} must be positive, and demand {demand!r} not negative")
    values = law.values[None]
    log_n, log_d = _minimum(law, values, loss, demand, at)
    if not np.isfinite(log_n[0]):
        floor = float(law.law.column(values, "E")[0]) if law.law.has_floor else 0.0
        raise AnalysisError(f"a loss of {loss:g} is not above the law's floor E = {floor:.4g}: no "
                            "model reaches it")  # fmt: skip
    n, d = float(np.exp(log_n[0])), float(np.exp(log_d[0]))
    training, inference = _costs(law, log_n, log_d, demand, at)
    draws = np.empty(0)
    if law.draws is not None:
        drawn = _minimum(law, law.draws.values, loss, demand, at)
        draws = np.add(*_costs(law, *drawn, demand, at))
        draws = np.where(np.isfinite(draws), draws, np.inf)
    return Deployment(n, d, float(training[0]), float(inference[0]),
                      float(at.kept(np.array([n]))[0]) if at.kept else float("nan"), draws,
                      outside_of(law, n, d))  # fmt: skip


def _costs(
    law: LawFit, log_n: Array, log_d: Array, demand: float, at: Serving
) -> tuple[Array, Array]:
    """Training and inference FLOPs."""
    with np.errstate(over="ignore"):
        training = np.exp(law.compute_model.log_cost(log_n)[0] + log_d)
        return training, demand * np.exp(at.flops.log_cost(log_n)[0])


def _minimum(
    law: LawFit, values: Array, loss: float, demand: float, at: Serving
) -> tuple[Array, Array]:
    """log N and log D (b,) of the cheapest model for natural parameters (b, p); NaN where none
    reaches the loss."""
    return least_cost(law, values, loss, lambda n, d: np.add(*_costs(law, n, d, demand, at)))


def deployments(
    laws: dict[str, LawFit], loss: float, demand: float, at: dict[str, Serving], baseline: str
) -> pd.DataFrame:
    """The cheapest model of every architecture, a row each.

    Returns:
        arch, context, n, d, training, inference, total, lo, hi, kept (bytes a sequence), ratio (of
        the total to the baseline's), ratio_lo, ratio_hi, outside, note.
    """
    found: dict[str, Deployment] = {}
    failures: dict[str, str] = {}
    for name, law in laws.items():
        try:
            found[name] = cheapest(law, loss, demand, at[name])
        except AnalysisError as error:
            failures[name] = str(error)
    base = found.get(baseline)
    table: list[dict[str, object]] = []
    for name, each in found.items():
        row: dict[str, object] = {
            "arch": name, "context": at[name].context, "n": each.n, "d": each.d,
            "training": each.training, "inference": each.inference, "total": each.total,
            "kept": each.kept, "outside": each.outside, "note": "",
        }  # fmt: skip
        if len(each.total_draws):
            row["lo"], row["hi"] = each.interval()
        if base is not None:
            row["ratio"] = each.total / base.total
            if len(each.total_draws) == len(base.total_draws) > 0:
                with np.errstate(invalid="ignore"):
                    ratios = each.total_draws / base.total_draws
                # Two endless costs, as of a loss that neither reaches, are alike.
                row["ratio_lo"], row["ratio_hi"] = interval_of(
                    np.where(np.isnan(ratios), 1.0, ratios), LEVEL
                )
        table.append(row)
    table.extend({"arch": name, "note": why} for name, why in failures.items())
    return pd.DataFrame(table)
