"""How many FLOPs does an adaptive sweep need for the grid's interval? Replays and simulations.

    python -m experiments.benchmarks.adaptive --seeds 100 --rows FILE.jsonl -o FILE.md --figure FILE

A grid is a set of runs whose losses are known (experiments/results) or drawn from a law. The goal
is the width of the 90 % interval that the whole grid gives, of a (of each architecture), of the
compute multiplier, or of a forecast, the lowest loss at four times the largest compute. Four ways
to it are compared by what they spent when they had it, as a share of the grid's FLOPs:

    adaptive               what `linscale run --adaptive` decides; runs up to any of their horizons
    in order, random, cheapest first     whole runs, intervals looked at after every fifth of the
                                         grid's FLOPs

All choose from one pool. Of a kept ladder that is the ladder itself: fewer of its runs can never be
worth as much as all, so only intervals that are narrow by luck come below 100 % there, and a goal
of 1.1 times the grid's width is shown beside. Simulated worlds have two architectures, seven sizes
and four horizons, each twice the one before. Their grid has one seed, and two more at the three
smallest sizes, as experiments/small_ladder.py; the pool has four seeds at every size, and ends at
1.6 times the grid's FLOPs. The noise of a seed is that of the small ladder: 0.8 % of loss, with a
correlation of 0.72 between one horizon of a run and the next. There the truth is known, and how
often intervals hold it.

Rows are appended to --rows as they come, and a world that is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.errors import AnalysisError
from analysis.figures import style
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.forecast.score import binomial_interval
from analysis.io.frames import groups, numbers, rows, where, words
from analysis.io.records import load_sweep
from analysis.judge.adaptive import Settings, State, decide
from analysis.judge.compare import baseline_of, ratio_draws
from analysis.judge.narrowing import Question, parse_target
from analysis.units import Array

ROOT = Path(__file__).parents[1]
DRAWS = 100
QUANTITIES = ("a", "multiplier", "loss")
STEPS = 5
"""Looks at the intervals on the way through a grid."""
MOST = 1.6
"""Of the grid's FLOPs, after which a way ends without the width."""
SLACKS = (1.0, 1.1)
"""Widths that are asked for, over those of the grid."""
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


# ---- worlds -----------------------------------------------------------------------------------


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


# ---- ways through a grid ----------------------------------------------------------------------


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
    """Width by name."""
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
    """A target for each width: what the grid has, and a hair."""
    base = baseline_of(archs)
    of = [a for a in archs if a != base] if name == "multiplier" else archs
    return [f"width({name}[{arch}])<{width * slack * 1.0001:.8g}"
            for arch, width in zip(of, goals.values(), strict=True)]  # fmt: skip


# ---- tables -----------------------------------------------------------------------------------

WAYS = ("adaptive", "in order", "random", "cheapest first")
WORDS = {"a": "a of both", "multiplier": "multiplier", "loss": "forecast"}


def interval_of(hits: int, count: int) -> str:
    """Share with its 90 % binomial interval."""
    low, high = binomial_interval(hits, count, 0.9)
    return f"{hits / count:.2f} ({low:.2f} to {high:.2f})"


def table(found: pd.DataFrame, slack: float) -> list[str]:
    """Markdown: FLOPs over the grid's and coverage, by quantity and way."""
    lines = ["| quantity | way | worlds | FLOPs / grid: median | mean | 90th | had it | coverage |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for quantity in QUANTITIES:
        for way in ("grid", *WAYS):
            own = where(found, quantity=quantity, way=way,
                        slack=1.0 if way == "grid" else slack)  # fmt: skip
            if not len(own):
                continue
            share = numbers(own, "share")
            hits = [hit for held in own["holds"] for hit in held]
            cover = interval_of(sum(hits), len(hits)) if hits else ""
            lines.append(
                f"| {WORDS[quantity]} | {way} | {len(own)} | {np.median(share):.2f} | "
                f"{share.mean():.2f} | {np.quantile(share, 0.9):.2f} | "
                f"{own['reached'].mean():.0%} | {cover} |"
            )
    return lines


def figure(found: pd.DataFrame, path: Path) -> None:
    """Share of the grid's FLOPs by way: median, quartiles and the inner four fifths of the
    worlds."""
    with style.context():
        drawing, axes = style.panels(1, 3, width=style.DOUBLE, height=2.2, sharey=True)
        for axis, quantity in zip(axes[0], QUANTITIES, strict=True):
            for at, way in enumerate(reversed(WAYS)):
                share = numbers(where(found, quantity=quantity, way=way, slack=1.0), "share")
                low, first, middle, third, high = np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9])
                colour = "#0072B2" if way == "adaptive" else style.GREY
                axis.plot([low, high], [at, at], color=colour, lw=0.9)
                axis.plot([first, third], [at, at], color=colour, lw=5, alpha=0.5,
                          solid_capstyle="butt")  # fmt: skip
                axis.plot([middle], [at], "o", color=colour)
            axis.axvline(1.0, color="black", lw=0.7, ls=":")
            axis.set_yticks(range(len(WAYS)), list(reversed(WAYS)))
            axis.set_xlim(0, MOST + 0.05)
            axis.set_title(WORDS[quantity])
            axis.set_xlabel("FLOPs / those of the grid")
        worlds = len(set(words(found, "world")))
        style.save(drawing, path, caption=f"FLOPs until the 90 % interval is as narrow as that of "
                   f"the whole grid, in {worlds} simulated worlds: median (dot), quartiles (bar), "
                   "inner four fifths (line). Ways that end without it count as "
                   f"{MOST:g}.", runs=[])  # fmt: skip


def world_of(name: str) -> World:
    """A kept ladder, or `KIND SEED`."""
    kind, _, seed = name.partition(" ")
    return simulated(kind, int(seed)) if seed else kept(kind)


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no world later")
    parser.add_argument("--rows", type=Path, default=Path("adaptive.jsonl"))
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    names = [f"{kind} {seed}" for seed in range(options.seeds) for kind in WORLDS]
    names = [*names[:3], "small_ladder", "quickstart", *names[3:]]
    begin = time.monotonic()
    known = read(options.rows)
    for name in names:
        if name in set(known["world"]) or time.monotonic() - begin > 60 * options.minutes:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = study_one(world_of(name), len(known))
        with options.rows.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in more)
    text = report(read(options.rows))
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    if options.figure:
        figure(simulated_rows(read(options.rows)), options.figure)


def read(path: Path) -> pd.DataFrame:
    """The rows so far."""
    if not path.exists():
        return pd.DataFrame({"world": []})
    with path.open(encoding="utf-8") as file:
        return pd.DataFrame([json.loads(line) for line in file])


def simulated_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Of worlds whose law is known."""
    return rows(found, [" " in name for name in words(found, "world")])


def report(found: pd.DataFrame) -> str:
    """The dated page."""
    lines = [
        f"# FLOPs to the grid's interval, {date.today()}",
        "",
        f"`python -m experiments.benchmarks.adaptive`; {platform.machine()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"intervals from {DRAWS} refits.",
    ]
    worlds = dict.fromkeys(words(found, "world"))
    for name in (w for w in worlds if " " not in w):
        for slack in SLACKS:
            lines += ["", f"## {name}, {slack:g} times the grid's width", "",
                      *table(where(found, world=name), slack)]  # fmt: skip
    many = simulated_rows(found)
    if len(many):
        kinds = [name.partition(" ")[0] for name in words(many, "world")]
        lines += ["", "## Simulated worlds", "", *table(many, 1.0)]
        for kind in WORLDS:
            own = rows(many, [each == kind for each in kinds])
            if len(own):
                lines += ["", f"### {kind}", "", *table(own, 1.0)]
        ours = where(many, way="adaptive")
        lines += ["", f"A sweep takes {ours['decisions'].median():.0f} decisions (median), "
                  f"{ours['seconds'].median():.1f} s of CPU for all of them."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
