"""The cheapest runs that are expected to make intervals as narrow as asked.

    Pool(candidates, fits, widths, done) -> what each further stretch of a run would tell
    pool.plan(budget) -> purchases in the order in which to make them

A run is measured at its horizons, and may be taken only up to one of them: a purchase is the
stretch of one run from the horizon that it has to a later one, at the difference of their FLOPs
(a longer run goes on from the trunk of the shorter). Its rows of the linearised law add to the
information of its architecture. The losses of one run's horizons share most of their noise (`RHO`),
so that a further horizon says little about the level of the loss and much about its fall with D.
Widths then fall as the standard errors of the linearised law do (delta method), from the
bootstrap's widths of today.

Greedily the purchase is made that brings the widths nearest to their goals per FLOP, until all are
expected to be there; what then turns out to be superfluous is given back, the dearest first, and
what a cheaper purchase can replace is replaced. The same is done per root of the FLOPs and by
nearness alone, and the cheapest plan is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers, where, words
from analysis.judge.design import noise_of
from analysis.judge.narrowing import Width
from analysis.units import LEVEL, Array

RHO = 0.7
"""Correlation of the noise of one run's horizons of which one is twice the other, as over the seeds
of the small ladder (0.63 to 0.79). Further apart it falls as a power."""
_APART = 0.1
"""Doublings that two different points of a run are apart at least."""
_ENDLESS = 2.0
"""Times its goal, which a width without an end counts as at least."""
_RIDGE = 1e-9
_ROUNDS = 20
_SMALL = 1e-12
_POWERS = (1.0, 0.5, 0.0)
"""Of the FLOPs that a step towards the goals is divided by."""


@dataclass(frozen=True)
class Unit:
    """One run of the experiment, which may be taken up to each of its horizons."""

    arch: str
    run_ids: list[str]
    """Of the run that ends at each horizon; empty where there is none."""
    cost: Array
    """FLOPs of that run from the first step (k,)."""
    information: Array
    """What each horizon adds to those before (k, p, p)."""
    begun: int
    """Horizons that are measured."""


@dataclass(frozen=True)
class Purchase:
    """A stretch of one run."""

    unit: int
    first: int
    last: int
    """Horizons first + 1 to last, counted from 1."""
    run_id: str
    arch: str
    cost: float


@dataclass(frozen=True)
class Plan:
    """Purchases in order, and the widths that are expected after all of them."""

    purchases: list[Purchase]
    widths: Array
    reaches: bool
    """Whether every width is expected to meet its goal."""

    @property
    def cost(self) -> float:
        """FLOPs of all purchases."""
        return sum(each.cost for each in self.purchases)


class Pool:
    """What can be bought, and what it would tell."""

    def __init__(
        self,
        candidates: pd.DataFrame,
        fits: Mapping[str, LawFit],
        widths: Sequence[Width],
        done: Mapping[str, int],
        closed: frozenset[str],
    ) -> None:
        """
        Args:
            candidates: a row per horizon of each run: unit, run_id (of the run that ends there, ""
                for none), arch, size_seed, n_params, tokens, cost (FLOPs).
            fits: laws so far by architecture.
            widths: what is to be narrowed.
            done: horizons measured by unit.
            closed: units of which nothing more can be had.
        """
        self._widths = widths
        self._archs = list(fits)
        noise = pooled_noise(fits)
        rows = {unit: where(candidates, unit=unit) for unit in words(candidates, "unit")}
        self._start = {a: _information(fit, noise) for a, fit in fits.items()}
        self._units = [
            _unit(own, fits, noise, done.get(unit, 0))
            for unit, own in rows.items()
            if unit not in closed
        ]
        self._variance_now = self._variances(self._start)
        wide = 2 * NormalDist().inv_cdf((1 + LEVEL) / 2)
        drawn = all(fit.draws is not None for fit in fits.values())
        least = _ENDLESS if drawn else 0.0
        self.now = np.array([
            w.now if math.isfinite(w.now) else max(wide * math.sqrt(v), least * w.goal)
            for w, v in zip(widths, self._variance_now, strict=True)
        ])  # fmt: skip
        """Widths today; those that nothing was drawn for, or that have no end, of the linearised
        law."""
        self._goal = np.array([w.goal for w in widths])

    def options(self, state: Sequence[int], budget: float) -> list[Purchase]:
        """What can be bought when so many horizons of each unit are there."""
        found: list[Purchase] = []
        for number, (unit, have) in enumerate(zip(self._units, state, strict=True)):
            paid = float(unit.cost[have - 1]) if have else 0.0
            for last in range(have + 1, len(unit.cost) + 1):
                cost = float(unit.cost[last - 1]) - paid
                if unit.run_ids[last - 1] and cost <= budget:
                    found.append(
                        Purchase(number, have, last, unit.run_ids[last - 1], unit.arch, cost)
                    )
        return found

    def cheapest(self) -> float | None:
        """FLOPs of the cheapest purchase; None where every candidate is measured."""
        able = self.options([unit.begun for unit in self._units], math.inf)
        return min((each.cost for each in able), default=None)

    def expected(self, purchases: Sequence[Purchase]) -> Array:
        """Widths after these (widths,)."""
        return self._scaled(self._variances(self._after(purchases)))

    def plan(self, budget: float) -> Plan:
        """Purchases that are expected to reach the goals at least cost, or as near as the budget
        goes."""
        plans = [self._greedy(budget, power) for power in _POWERS]
        good = [self._improved(plan) for plan in plans if plan.reaches]
        if good:
            return min(good, key=lambda plan: plan.cost)
        return min(plans, key=lambda plan: float(_distance(plan.widths / self._goal)))

    def _added(self, purchase: Purchase) -> Array:
        return self._units[purchase.unit].information[purchase.first : purchase.last].sum(axis=0)

    def _after(self, purchases: Sequence[Purchase]) -> dict[str, Array]:
        """Information with these."""
        information = {a: each.copy() for a, each in self._start.items()}
        for each in purchases:
            information[each.arch] += self._added(each)
        return information

    def _scaled(self, variances: Array) -> Array:
        return self.now * np.sqrt(variances / np.maximum(self._variance_now, 1e-300))

    def _variances(self, information: Mapping[str, Array]) -> Array:
        """Of every width's quantity (..., widths), information (..., p, p) by architecture."""
        parts: list[Array] = []
        for width in self._widths:
            each = [_variance(information[a], g) for a, g in width.gradients.items()]
            parts.append(np.sum(np.broadcast_arrays(*each), axis=0))
        return np.stack(np.broadcast_arrays(*parts), axis=-1)

    def _greedy(self, budget: float, power: float) -> Plan:
        state = [unit.begun for unit in self._units]
        current = {a: each.copy() for a, each in self._start.items()}
        bought: list[Purchase] = []
        left = budget
        ratios = self._scaled(self._variances(current)) / self._goal
        while (ratios >= 1).any():
            able = self.options(state, left)
            if not able:
                break
            gains = np.empty(len(able))
            for arch in self._archs:
                own = [i for i, each in enumerate(able) if each.arch == arch]
                if not own:
                    continue
                more = np.stack([self._added(able[i]) for i in own])
                after = self._variances(current | {arch: current[arch] + more})
                gains[own] = _distance(ratios) - _distance(self._scaled(after) / self._goal)
            if gains.max() <= _SMALL:
                break
            price = np.array([each.cost for each in able]) ** power
            best = able[int((gains / price).argmax())]
            current[best.arch] = current[best.arch] + self._added(best)
            state[best.unit], left = best.last, left - best.cost
            bought.append(best)
            ratios = self._scaled(self._variances(current)) / self._goal
        if (ratios < 1).all():
            bought = self._pruned(bought)
        widths = self.expected(bought)
        return Plan(bought, widths, bool((widths < self._goal).all()))

    def _pruned(self, bought: list[Purchase]) -> list[Purchase]:
        """Without purchases that the goals do not need, the dearest given back first; a stretch
        stays while a later one of its run is kept."""
        kept = list(bought)
        for each in sorted(bought, key=lambda p: -p.cost):
            if any(p.unit == each.unit and p.first >= each.last for p in kept):
                continue
            fewer = [p for p in kept if p is not each]
            if (self.expected(fewer) < self._goal).all():
                kept = fewer
        return kept

    def _improved(self, plan: Plan) -> Plan:
        """A plan that reaches the goals, with purchases replaced by cheaper ones while it still
        does."""
        bought = list(plan.purchases)
        for _ in range(_ROUNDS):
            best = self._replaced(bought)
            if best is None:
                break
            bought = self._pruned(best)
        return Plan(bought, self.expected(bought), True)

    def _replaced(self, bought: list[Purchase]) -> list[Purchase] | None:
        """The cheapest plan with one purchase replaced by another; None where none is cheaper."""
        found: list[Purchase] | None = None
        saved = 0.0
        for each in bought:
            rest = [p for p in bought if p.unit != each.unit or p.last <= each.first]
            state = [unit.begun for unit in self._units]
            for p in rest:
                state[p.unit] = max(state[p.unit], p.last)
            paid = sum(p.cost for p in bought) - sum(p.cost for p in rest)
            able = [p for p in self.options(state, paid * (1 - 1e-9)) if paid - p.cost > saved]
            if not able:
                continue
            information = self._after(rest)
            for arch in self._archs:
                own = [p for p in able if p.arch == arch]
                if not own:
                    continue
                more = information[arch] + np.stack([self._added(p) for p in own])
                widths = self._scaled(self._variances(information | {arch: more}))
                reach = np.all(widths < self._goal, axis=-1).tolist()
                for p, reaches in zip(own, reach, strict=True):
                    if reaches and paid - p.cost > saved:
                        found, saved = [*rest, p], paid - p.cost
        return found


def pooled_noise(fits: Mapping[str, LawFit]) -> float:
    """Standard deviation of log loss about the laws, of all architectures together: each has few
    points, and they share data and horizons."""
    weight = np.array([len(fit.observations.loss) for fit in fits.values()], dtype=float)
    squares = np.array([noise_of(fit) ** 2 for fit in fits.values()])
    return float(np.sqrt(np.average(squares, weights=weight)))


def _information(fit: LawFit, noise: float) -> Array:
    """Of the points that a law was fitted to (p, p)."""
    obs = fit.observations
    rows = _rows(fit, fit.problem.x, noise) * np.sqrt(obs.weight)[:, None]
    tokens = obs.columns["d"]
    runs = (np.flatnonzero(obs.cluster == run) for run in range(len(obs.labels)))
    return np.sum([_of_run(rows[own], tokens[own]) for own in runs], axis=0)


def _of_run(rows: Array, tokens: Array) -> Array:
    """J' S^-1 J of one run's rows (k, p) at tokens (k,), S their correlation."""
    apart = np.abs(np.subtract.outer(np.log2(tokens), np.log2(tokens)))
    # Points at the same tokens, of runs that share a name, are not one point twice.
    correlation = RHO ** np.where(np.eye(len(tokens)) > 0, 0.0, np.maximum(apart, _APART))
    return rows.T @ np.linalg.solve(correlation, rows)


def _rows(fit: LawFit, x: Array, noise: float) -> Array:
    """Of the linearised law, in standard deviations of the noise (m, p)."""
    _, jacobian, _ = fit.law.evaluate(fit.theta[None], x)
    return jacobian[0].T / noise


def _unit(rows: pd.DataFrame, fits: Mapping[str, LawFit], noise: float, begun: int) -> Unit:
    arch = words(rows, "arch")[0]
    fit = fits[arch]
    columns = {"n": numbers(rows, "n_params"), "d": numbers(rows, "tokens")}
    x, _ = fit.law.features(columns, fit.problem.centres)
    each, tokens = _rows(fit, x, noise), columns["d"]
    upto = [_of_run(each[:k], tokens[:k]) for k in range(len(each) + 1)]
    information = np.diff(np.stack(upto), axis=0)
    return Unit(arch, words(rows, "run_id"), numbers(rows, "cost"), information, begun)


def _variance(information: Array, gradient: Array) -> Array:
    """g' I^-1 g (...,) of information (..., p, p)."""
    scale = np.sqrt(np.maximum(np.diagonal(information, axis1=-2, axis2=-1), 1e-300))
    scaled = information / (scale[..., :, None] * scale[..., None, :])
    scaled = scaled + _RIDGE * np.eye(information.shape[-1])
    direction = gradient / scale
    solved = np.linalg.solve(scaled, direction[..., None])[..., 0]
    return np.maximum((direction * solved).sum(axis=-1), 0.0)


def _distance(ratios: Array) -> Array:
    """How far widths are from their goals (...,): only what is too wide counts."""
    return (np.maximum(ratios, 1.0) ** 2 - 1).sum(axis=-1)
