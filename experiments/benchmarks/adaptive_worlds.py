"""Grids of runs whose losses are known: kept ladders, and ladders drawn from a law.

Simulated worlds have two architectures, seven sizes and four horizons, each twice the one before.
Their grid has one seed, and two more at the three smallest sizes, as experiments/small_ladder.py;
the pool has four seeds at every size. The noise of a seed is that of the small ladder: 0.8 % of
loss, with a correlation of 0.72 between one horizon of a run and the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.io.frames import numbers, rows, where, words
from analysis.io.records import load_sweep
from analysis.units import Array

ROOT = Path(__file__).parents[1]
RHO, NOISE = 0.72, 0.008


@dataclass(frozen=True)
class World:
    """A pool of runs with their losses."""

    name: str
    points: pd.DataFrame
    """A row per run and horizon, with `unit` (the run) and `cost` (of the run up to there)."""
    truth: dict[str, float]
    """Of every width's name; empty where nobody knows it."""
    forecast: str
    """The quantity that stands for the forecast: `loss@C`."""
    grid: list[str]
    """The runs of the grid, in its order."""

    @property
    def costs(self) -> dict[str, float]:
        """FLOPs of every run of the pool, the grid's first."""
        found: dict[str, float] = {}
        for unit, cost in zip(
            words(self.points, "unit"), numbers(self.points, "cost"), strict=True
        ):
            found[unit] = max(found.get(unit, 0.0), float(cost))
        return found

    @property
    def flops(self) -> float:
        """Of the whole grid."""
        return sum(self.costs[unit] for unit in self.grid)

    @property
    def grid_points(self) -> pd.DataFrame:
        """What the grid measures."""
        return rows(self.points, self.points["unit"].isin(self.grid))


def kept(name: str) -> World:
    """A ladder of experiments/results."""
    sweep = load_sweep(ROOT / "results" / f"{name}.zip")
    points = sweep.require_points()
    points = points.assign(unit=points["run_id"])
    runs = sweep.runs.set_index("run_id")
    cost: list[float] = []
    for unit, tokens, per in zip(points["unit"], points["tokens"],
                                 points["flops"] / points["tokens"], strict=True):  # fmt: skip
        horizons = np.array([h for h in runs.loc[unit, "horizons"] if h <= tokens * 1.01])
        share = float(runs.loc[unit, "decay_fraction"])
        cost.append(per * (horizons[-1] + share * horizons[:-1].sum()))
    points = points.assign(cost=cost)
    order = [u for _, u in sorted((int(str(s)), u) for u, s in
             dict(zip(points["unit"], points["seed"], strict=True)).items())]  # fmt: skip
    points = pd.concat([where(points, unit=u) for u in order], ignore_index=True)
    return World(name, points, {}, f"loss@{4 * numbers(points, 'flops').max():.4g}", order)


def _laws(kind: str, rng: np.random.Generator) -> list[Callable[[Array, Array], Array]]:
    """ln L(N, D) of two architectures."""
    e, a, b = rng.uniform(1.2, 2.0), rng.uniform(0.28, 0.4), rng.uniform(0.28, 0.4)
    gap = rng.uniform(-0.12, 0.12)
    found: list[Callable[[Array, Array], Array]] = []
    for shift in (0.0, gap):
        alpha, beta = a + 0.3 * shift, b

        found.append(partial(_log_loss, kind, e, shift, alpha, beta))
    return found


def _log_loss(
    kind: str, e: float, shift: float, alpha: float, beta: float, n: Array, d: Array
) -> Array:
    size, data = 0.9 * np.exp(shift) * (n / 1e8) ** -alpha, 0.9 * (d / 2e9) ** -beta
    if kind == "gamma":
        return np.log(e + 1.8 * ((size / 2) ** 1.6 + (data / 2) ** 1.6) ** 0.625)
    wrong = 0.006 * np.log(n / 1e8) ** 2 / 4 if kind == "mistuned" else 0.0
    return np.log(e + size + data) + wrong


WORLDS = ("chinchilla", "gamma", "mistuned")
"""The form that is fitted; the terms joined by another exponent; rates that get worse, by up to
0.8 % of loss, away from the size where they were tuned."""


def simulated(kind: str, seed: int) -> World:
    """A grid drawn from a law, and what its intervals should hold."""
    rng = np.random.default_rng([seed, WORLDS.index(kind)])
    laws = _laws(kind, rng)
    sizes, horizons = np.geomspace(2e7, 1e9, 7), 1e9 * 2.0 ** np.arange(4.0)
    paid = horizons + 0.15 * np.concatenate([[0.0], np.cumsum(horizons)[:-1]])
    root = np.linalg.cholesky(RHO ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    parts: list[pd.DataFrame] = []
    grid: list[str] = []
    for replica in range(4):
        for k, n in enumerate(sizes):
            for arch, law in zip(("llama", "tnl"), laws, strict=True):
                loss = np.exp(law(n, horizons) + NOISE * root @ rng.standard_normal(4))
                unit = f"{arch}-s{k}-r{replica}"
                if replica == 0 or (replica < 3 and k < 3):
                    grid.append(unit)
                parts.append(pd.DataFrame({
                    "unit": unit, "run_id": unit, "arch": arch, "size": f"s{k}", "seed": replica,
                    "size_seed": f"s{k} seed {replica}", "n_params": n, "tokens": horizons,
                    "flops": 6 * n * horizons, "cost": 6 * n * paid, "loss": loss,
                }))  # fmt: skip
    parts.sort(key=lambda part: part["unit"].iloc[0] not in grid)
    points = pd.concat(parts, ignore_index=True)
    at = 4 * float(numbers(points, "flops").max())
    return World(f"{kind} {seed}", points, _truth(laws, points, at), f"loss@{at:.6g}", grid)


def _truth(laws: list[Callable[[Array, Array], Array]], points: pd.DataFrame, at: float
           ) -> dict[str, float]:  # fmt: skip
    """By brute force over N."""
    low, high = float(numbers(points, "flops").min()), float(numbers(points, "flops").max())
    n = np.geomspace(1e5, 1e13, 400_001)

    def best(law: Callable[[Array, Array], Array], c: float) -> tuple[float, float]:
        values = law(n, c / (6 * n))
        k = int(values.argmin())
        return float(n[k]), float(np.exp(values[k]))

    found: dict[str, float] = {}
    for arch, law in zip(("llama", "tnl"), laws, strict=True):
        found[f"a of {arch}"] = float(np.log(best(law, high)[0] / best(law, low)[0])
                                      / np.log(high / low))  # fmt: skip
        found[f"loss@{at:.6g} of {arch}"] = best(law, at)[1]
    wanted = best(laws[0], high)[1]
    low_c, high_c = high / 100, high * 100
    for _ in range(60):
        middle = float(np.sqrt(low_c * high_c))
        low_c, high_c = (middle, high_c) if best(laws[1], middle)[1] > wanted else (low_c, middle)
    found["multiplier"] = high / high_c
    return found


def world_of(name: str) -> World:
    """A kept ladder, or `KIND SEED`."""
    kind, _, seed = name.partition(" ")
    return simulated(kind, int(seed)) if seed else kept(kind)
