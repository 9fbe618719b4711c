"""What a loss costs on several clocks, beside a baseline, and the context where the order turns.

    clocks(laws, loss, costs, baseline)        a row an architecture and clock
        training FLOPs      of the model that reaches the loss with the fewest
        tokens              that this model is trained on
        training seconds    of the model that reaches the loss in the least time, by measured steps
        bytes a token       read to generate one: weights, state and cache of the first model
    turning(laws, loss, costs, baseline, clock)    where the ratio to the baseline passes 1

Costs at a context other than the one trained at are exact counts; losses there are taken to be
those of the laws, which no run of the sweep has shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.judge.least_cost import interval_of, least_cost, outside_of
from analysis.laws.compute_model import ComputeModel
from analysis.units import Array

FLOPS, TOKENS, SECONDS, BYTES = "training FLOPs", "tokens", "training seconds", "bytes a token"
CLOCKS = (FLOPS, TOKENS, SECONDS, BYTES)


@dataclass(frozen=True)
class Costs:
    """What one architecture costs at one context, as functions of N."""

    context: int
    flops: ComputeModel
    """Training FLOPs a token."""
    bytes_read: ComputeModel
    """Weights, state and cache, read to generate the token at the end of the context."""
    seconds: ComputeModel | None = None
    """Of training, a token, on one machine; None where no steps were measured."""


@dataclass(frozen=True)
class Reading:
    """A clock of one architecture."""

    value: float
    draws: Array
    """Of every bootstrap refit (b,); infinite where it cannot reach the loss."""
    outside: str
    """In words, where the model lies outside what was trained."""


def readings(law: LawFit, loss: float, costs: Costs) -> dict[str, Reading]:
    """Every clock of one architecture; seconds only where they were measured.

    Raises:
        AnalysisError: a law without N and D, or one whose floor lies above the loss.
    """
    found = _by_flops(law, loss, costs)
    if costs.seconds is not None:
        found[SECONDS] = _total(law, loss, costs.seconds)
    return {clock: found[clock] for clock in CLOCKS if clock in found}


def _by_flops(law: LawFit, loss: float, costs: Costs) -> dict[str, Reading]:
    """The clocks of the model with the fewest FLOPs."""
    log_n, log_d = _models(law, loss, costs.flops)
    outside = outside_of(law, float(np.exp(log_n[0])), float(np.exp(log_d[0])))
    values = {
        FLOPS: costs.flops.log_cost(log_n)[0] + log_d,
        TOKENS: log_d,
        BYTES: costs.bytes_read.log_cost(log_n)[0],
    }
    return {clock: _reading(x, outside) for clock, x in values.items()}


def _total(law: LawFit, loss: float, cost: ComputeModel) -> Reading:
    """cost(N) D at its least."""
    log_n, log_d = _models(law, loss, cost)
    outside = outside_of(law, float(np.exp(log_n[0])), float(np.exp(log_d[0])))
    return _reading(cost.log_cost(log_n)[0] + log_d, outside)


def _models(law: LawFit, loss: float, cost: ComputeModel) -> tuple[Array, Array]:
    """log N and log D of the law, and of its refits behind it."""
    values = law.values[None]
    if law.draws is not None:
        values = np.concatenate([values, law.draws.values])
    log_n, log_d = least_cost(law, values, loss, lambda n, d: cost.log_cost(n)[0] + d)
    if not np.isfinite(log_n[0]):
        floor = float(law.law.column(values[:1], "E")[0]) if law.law.has_floor else 0.0
        raise AnalysisError(f"a loss of {loss:g} is not above the law's floor E = {floor:.4g}: no "
                            "model reaches it")  # fmt: skip
    return log_n, log_d


def _reading(logs: Array, outside: str) -> Reading:
    values = np.exp(logs)
    return Reading(float(values[0]), np.where(np.isfinite(values[1:]), values[1:], np.inf), outside)


def clocks(
    laws: Mapping[str, LawFit], loss: float, costs: Mapping[str, Costs], baseline: str
) -> pd.DataFrame:
    """Every clock of every architecture, a row each.

    Args:
        laws: by architecture, with refits for intervals.
        loss: to reach, in nats.
        costs: of every architecture, at one context.
        baseline: what the others are divided by.

    Returns:
        arch, clock, context, value, lo, hi, ratio (of the baseline's value to this one, so that
        above 1 this one is cheaper), ratio_lo, ratio_hi, outside; an architecture that cannot reach
        the loss has one row with `note`.
    """
    found: dict[str, dict[str, Reading]] = {}
    table: list[dict[str, object]] = []
    for name, law in laws.items():
        try:
            found[name] = readings(law, loss, costs[name])
        except AnalysisError as error:
            table.append({"arch": name, "note": str(error)})
    base = found.get(baseline, {})
    for name, clocks_of in found.items():
        for clock, own in clocks_of.items():
            row: dict[str, object] = {
                "arch": name, "clock": clock, "context": costs[name].context, "value": own.value,
                "outside": own.outside, "note": "",
            }  # fmt: skip
            if len(own.draws):
                row["lo"], row["hi"] = interval_of(own.draws)
            if clock in base:
                row["ratio"] = base[clock].value / own.value
                if len(own.draws) == len(base[clock].draws) > 0:
                    row["ratio_lo"], row["ratio_hi"] = interval_of(_over(base[clock], own))
            table.append(row)
    return pd.DataFrame(table)


def _over(base: Reading, own: Reading) -> Array:
    """Ratios of the refits. Two endless costs, as of a loss that neither reaches, are alike."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = base.draws / own.draws
    return np.where(np.isnan(ratios), 1.0, ratios)


def turning(
    laws: Mapping[str, LawFit],
    loss: float,
    costs: Mapping[str, Mapping[int, Costs]],
    baseline: str,
    clock: str,
) -> pd.DataFrame:
    """The context from which an architecture is cheaper than the baseline, or dearer.

    Args:
        laws, loss, baseline: as of `clocks`.
        costs: by architecture and context, the same contexts for all.
        clock: FLOPS or BYTES.

    Returns:
        arch, turn (tokens; interpolated in logarithms; NaN where the order never turns), lo, hi
        (infinite, or 0, where a refit never turns), text: which is cheaper where.
    """
    contexts = sorted(costs[baseline])
    logs = np.log(contexts)
    table: list[dict[str, object]] = []
    for name, law in laws.items():
        if name == baseline:
            continue
        try:
            pairs = [
                (readings(laws[baseline], loss, costs[baseline][c])[clock],
                 readings(law, loss, costs[name][c])[clock])
                for c in contexts
            ]  # fmt: skip
        except AnalysisError as error:
            table.append({"arch": name, "text": str(error)})
            continue
        gains = np.array([np.log(base.value / own.value) for base, own in pairs])
        turn = _crossing(logs, gains)
        row: dict[str, object] = {"arch": name, "turn": turn, "text": _in_words(contexts, gains)}
        if len(pairs[0][0].draws) == len(pairs[0][1].draws) > 0:
            drawn = np.log(np.array([_over(base, own) for base, own in pairs]))  # (contexts, b)
            turns = np.array([_crossing(logs, column) for column in drawn.T])
            never = np.isnan(turns)
            # A refit that is cheaper everywhere turned before the first context, one that is
            # dearer everywhere has not by the last.
            turns[never] = np.where(drawn[-1, never] > 0, 0.0, np.inf)
            row["lo"], row["hi"] = interval_of(turns)
        table.append(row)
    return pd.DataFrame(table)


def _crossing(logs: Array, gains: Array) -> float:
    """Context where the gain passes 0 for the last time; NaN where it does not."""
    signs = np.sign(gains)
    places = np.flatnonzero(signs[1:] * signs[:-1] < 0)
    if not len(places):
        return float("nan")
    i = int(places[-1])
    share = gains[i] / (gains[i] - gains[i + 1])
    return float(np.exp(logs[i] + share * (logs[i + 1] - logs[i])))


def _in_words(contexts: list[int], gains: Array) -> str:
    if (gains > 0).all():
        return f"cheaper at every context from {contexts[0]:,} to {contexts[-1]:,}"
    if (gains < 0).all():
        return f"dearer at every context from {contexts[0]:,} to {contexts[-1]:,}"
    return "cheaper at longer contexts" if gains[-1] > 0 else "dearer at longer contexts"
