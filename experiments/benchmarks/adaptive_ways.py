"""What each way through a grid has spent when its intervals are as narrow as the grid's.

The adaptive way asks what `linscale run --adaptive` asks and reads the losses from the world; the
others take whole runs in an order, and look at the intervals after every fifth of the grid's FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.io.frames import groups, numbers, rows, where, words
from analysis.judge.adaptive import Settings, State, decide
from analysis.judge.compare import baseline_of, ratio_draws
from analysis.judge.narrowing import Question, parse_target
from experiments.benchmarks.adaptive_worlds import World

DRAWS = 100
QUANTITIES = ("a", "multiplier", "loss")
STEPS = 5
"""Looks at the intervals on the way through a grid."""
MOST = 1.6
"""Of the grid's FLOPs, after which a way ends without the width."""
SLACKS = (1.0, 1.1)
"""Widths that are asked for, over those of the grid."""


def fits_of(points: pd.DataFrame) -> dict[str, LawFit]:
    """A law of every architecture, with draws.

    Raises:
        AnalysisError: one has too few runs.
    """
    return {
        arch: fit_law("chinchilla", where(points, arch=arch), clusters="size_seed",
                      accounting=True, bootstrap=DRAWS)
        for arch in groups(points, "arch")
    }  # fmt: skip


def question_of(world: World, quantity: str, archs: list[str]) -> Question:
    """The widths of a quantity; goals do not matter."""
    name = world.forecast if quantity == "loss" else quantity
    compute = min(float(numbers(where(world.points, arch=a), "flops").max()) for a in archs)
    return Question([parse_target(f"width({name})<1")], archs, compute)


def widths_of(world: World, quantity: str, fits: dict[str, LawFit]) -> dict[str, float]:
    """Width by name; where a law never comes down to the loss that is asked for it has no end."""
    return {w.name: w.now for w in question_of(world, quantity, list(fits)).measure(fits)}


def holds(world: World, quantity: str, fits: dict[str, LawFit]) -> list[bool]:
    """Whether each interval holds the truth."""
    if not world.truth:
        return []
    found: list[bool] = []
    if quantity == "multiplier":
        base = baseline_of(fits)
        compute = question_of(world, quantity, list(fits)).compute
        losses = fits[base].frontier(np.array([compute]))
        for arch in fits:
            if arch != base:
                ratio = ratio_draws(fits[arch], fits[base], losses)[:, 0]
                low, high = np.quantile(ratio, [0.05, 0.95], method="nearest")
                found.append(bool(low <= world.truth["multiplier"] <= high))
        return found
    for arch, fit in fits.items():
        if quantity == "a":
            low, high = fit.interval("a")
            truth = world.truth[f"a of {arch}"]
        else:
            at = float(world.forecast.partition("@")[2])
            ends = quantiles(fit.frontier_draws(np.array([at])), 0.9)
            low, high = float(ends[0][0]), float(ends[1][0])
            truth = world.truth[f"{world.forecast} of {arch}"]
        found.append(low <= truth <= high)
    return found


def adaptive(world: World, targets: list[str], batch: int) -> tuple[float, pd.DataFrame, int, str]:
    """FLOPs, points, number of decisions and the last one's reason."""
    points = world.points
    order = points.groupby("unit").cumcount()
    ids = [f"{u}@{k}" for u, k in zip(words(points, "unit"), order, strict=True)]
    candidates = points.assign(run_id=ids).drop(columns="loss")
    settings = Settings(targets=targets, budget=MOST * world.flops, batch=batch, draws=DRAWS)
    have: dict[str, float] = {}
    spent, reached, decisions = 0.0, False, 0
    done: set[str] = set()
    cost = dict(zip(ids, numbers(points, "cost").tolist(), strict=True))
    while True:
        keep = [cost[run] <= have.get(run.partition("@")[0], 0.0) for run in ids]
        measured = rows(points, keep)
        decision = decide(settings, candidates, measured,
                          State(done=frozenset(done), spent=spent, reached=reached))  # fmt: skip
        if decision.stops:
            return spent, measured, decisions, decision.why
        decisions += 1
        spent += decision.cost
        reached = decision.why == "confirm"
        for run in decision.runs:
            done.add(run)
            have[run.partition("@")[0]] = cost[run]


def path(world: World, order: list[str]) -> Iterator[tuple[float, dict[str, LawFit]]]:
    """FLOPs and laws after every fifth of the grid's FLOPs, whole runs in an order."""
    points, total, cost = world.points, world.flops, world.costs
    spent, bought, next_look = 0.0, set[str](), 1
    for unit in order:
        bought.add(unit)
        spent += cost[unit]
        if spent > MOST * total:
            return
        if spent < total * next_look / STEPS * (1 - 1e-9):
            continue
        next_look = int(spent / total * STEPS * (1 + 1e-9)) + 1
        try:
            fits = fits_of(rows(points, points["unit"].isin(list(bought))))
        except AnalysisError:
            continue
        if len(fits) == len(groups(points, "arch")):
            yield spent, fits


def study_one(world: World, seed: int) -> list[dict[str, Any]]:
    """All ways through one world."""
    found: list[dict[str, Any]] = []
    grid = fits_of(world.grid_points)
    goals = {q: widths_of(world, q, grid) for q in QUANTITIES}
    rng = np.random.default_rng(seed)
    units, cost = list(world.costs), world.costs
    orders = {
        "in order": units,
        "random": [units[i] for i in rng.permutation(len(units))],
        "cheapest first": sorted(units, key=lambda unit: cost[unit]),
    }
    slacks = SLACKS if not world.truth else SLACKS[:1]

    def add(way: str, quantity: str, slack: float, spent: float,
            fits: dict[str, LawFit] | None, **more: Any) -> None:  # fmt: skip
        held = [] if fits is None else holds(world, quantity, fits)
        found.append({"world": world.name, "way": way, "quantity": quantity, "slack": slack,
                      "share": spent / world.flops, "reached": fits is not None, "holds": held,
                      **more})  # fmt: skip

    for quantity in QUANTITIES:
        add("grid", quantity, 1.0, world.flops, grid)
    for way, order in orders.items():
        left = {(quantity, slack) for quantity in QUANTITIES for slack in slacks}
        for spent, fits in path(world, order):
            for quantity, slack in sorted(left):
                now = widths_of(world, quantity, fits)
                goal = goals[quantity]
                if all(now[name] <= goal[name] * slack * (1 + 1e-9) for name in goal):
                    add(way, quantity, slack, spent, fits)
                    left.discard((quantity, slack))
            if not left:
                break
        for quantity, slack in sorted(left):
            add(way, quantity, slack, MOST * world.flops, None)
    archs = groups(world.points, "arch")
    for quantity in QUANTITIES:
        for slack in slacks:
            name = world.forecast if quantity == "loss" else quantity
            targets = targets_of(name, goals[quantity], archs, slack)
            begin = time.process_time()
            spent, points, decisions, why = adaptive(world, targets, len(archs))
            used = time.process_time() - begin
            add("adaptive", quantity, slack, spent, fits_of(points) if why == "target" else None,
                decisions=decisions, why=why, seconds=used)  # fmt: skip
    return found


def targets_of(name: str, goals: dict[str, float], archs: list[str], slack: float) -> list[str]:
    """A target for each width that has an end: what the grid has, and a hair."""
    base = baseline_of(archs)
    of = [a for a in archs if a != base] if name == "multiplier" else archs
    return [f"width({name}[{arch}])<{width * slack * 1.0001:.8g}"
            for arch, width in zip(of, goals.values(), strict=True)
            if np.isfinite(width)]  # fmt: skip
