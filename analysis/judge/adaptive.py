"""Which runs next? One decision of an adaptive sweep, a function of its data alone.

decide(settings, candidates, points, state) -> Decision
    1. until every architecture has a law: the opening, its smallest sizes, the smallest two at all
       horizons and the others at the first half of theirs
    2. laws, and the width of every target: of the linearised law while one is far from its goal,
       then of the bootstrap, as in a report (`analysis.judge.narrowing`)
    3. all narrow enough, twice in a row: stop. Nothing left to buy: stop. Budget spent: stop
    4. the cheapest purchases that are expected to reach the goals (`analysis.judge.purchases`); the
       first of them, `batch` runs, are what to do next

The same data give the same decision: the seed of the bootstrap is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import FEWEST_CLUSTERS
from analysis.io.frames import groups, numbers, where, words
from analysis.judge.narrowing import Question, parse_target
from analysis.judge.purchases import Plan, Pool, Purchase

FORM = "chinchilla"
DRAWS = 400
"""Refits behind the widths."""
OPENING = 4
"""Sizes of each architecture that the sweep begins with."""
FEWEST_RUNS = 5
"""Runs of each architecture without which no target counts as reached: intervals of fewer are
luck."""
UNIT = "size_seed"
"""What the bootstrap resamples: runs of one size and seed, in pairs across architectures."""
FAR = 2.0
"""Times its goal, beyond which a width of the linearised law will do, and nothing is refitted."""
LISTED = 8
"""Purchases that a decision's record names."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked of the sweep."""

    targets: Sequence[str]
    """As `analysis.judge.narrowing.parse_target` takes them; all must be reached."""
    budget: float
    """FLOPs that the runs chosen here may cost together."""
    batch: int
    """Runs between two decisions."""
    baseline: str | None = None
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        for text in self.targets:
            parse_target(text)
        if not self.targets:
            raise AnalysisError("--adaptive needs a --target, such as 'width(a)<0.05'")
        if not 0 < self.budget < math.inf:
            raise AnalysisError(f"--budget {self.budget:g}: a number of FLOPs above 0, as 3e15")
        if self.batch < 1:
            raise AnalysisError(f"--batch {self.batch}: at least one run")


@dataclass(frozen=True, kw_only=True)
class State:
    """What was bought so far."""

    done: frozenset[str] = frozenset()
    """Runs with a result."""
    closed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Runs that ended without one, and how."""
    spent: float = 0.0
    """FLOPs of the runs chosen before."""
    reached: bool = False
    """Whether the decision before found all targets reached."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do next."""

    why: str
    """`opening`, `narrow`, `confirm`, or to stop: `target`, `budget`, `exhausted`."""
    words: str
    """One sentence."""
    runs: list[str]
    """To train now; none: stop."""
    cost: float
    """Their FLOPs."""
    widths: list[dict[str, Any]]
    """Of each target: of, width (None: endless), goal, by (`linear` or `bootstrap`), and expected
    after `runs`."""
    ahead: list[dict[str, Any]]
    """The plan's first purchases: run_id, cost."""
    plan_cost: float | None = None
    """FLOPs that the whole plan is expected to take."""
    notes: list[str] = field(default_factory=list[str])

    @property
    def stops(self) -> bool:
        """Whether nothing is to be trained."""
        return not self.runs

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return dict(self.__dict__)


def decide(
    settings: Settings, candidates: pd.DataFrame, points: pd.DataFrame, state: State
) -> Decision:
    """The next runs.

    Args:
        settings: targets, budget, batch.
        candidates: a row per horizon of each run, in the order of the horizons: unit (the run),
            run_id (of the run that ends there, "" for none), arch, size_seed, n_params, tokens,
            flops (of the point) and cost (of the run that ends there), in FLOPs.
        points: what is measured, as `Sweep.points`.
        state: what was bought so far.

    Raises:
        AnalysisError: a target that the experiment cannot answer, or an experiment with too few
            sizes or horizons to fit a law.
    """
    archs = groups(candidates, "arch")
    question = _question(settings, candidates, archs)
    done = _horizons_done(candidates, state.done)
    closed = frozenset(
        unit for unit, run in zip(words(candidates, "unit"), words(candidates, "run_id"),
                                  strict=True) if run in state.closed
    )  # fmt: skip
    left = settings.budget - state.spent
    fits, reasons = _laws(points, archs)
    if len(fits) < len(archs):
        return _open(settings, candidates, done, closed, left, reasons)
    widths = question.measure(fits)
    pool = Pool(candidates, fits, widths, done, closed)
    linear = any(now > FAR * width.goal for now, width in zip(pool.now, widths, strict=True))
    if linear:
        widths = [replace(w, now=float(now)) for w, now in zip(widths, pool.now, strict=True)]
    else:
        fits = {a: f.bootstrap(settings.draws, seed=settings.seed) for a, f in fits.items()}
        widths = question.measure(fits)
    few = [a for a, fit in fits.items() if len(fit.observations.labels) < FEWEST_RUNS]
    reached = all(width.reached for width in widths)
    shown = [width.as_dict() | {"by": "linear" if linear else "bootstrap"} for width in widths]
    stop = Decision(why="target", words="every target is reached", runs=[], cost=0.0,
                    widths=shown, ahead=[])  # fmt: skip
    if reached and state.reached and not few:
        return stop
    if reached:  # once more: an interval may be narrow by luck
        widths = [replace(width, goal=0.9 * width.now) for width in widths]
    pool = Pool(candidates, fits, widths, done, closed)
    plan = pool.plan(left)
    if not plan.purchases:
        return stop if reached else _nothing_left(pool, left, shown)
    batch = _batch(plan, settings.batch)
    after = pool.expected(batch)
    for each, expected in zip(shown, after.tolist(), strict=True):
        each["expected"] = expected
    return Decision(
        why="confirm" if reached else "narrow",
        words=_sentence(reached, plan, left),
        runs=[each.run_id for each in batch],
        cost=sum(each.cost for each in batch),
        widths=shown,
        ahead=[{"run_id": p.run_id, "cost": p.cost} for p in plan.purchases[:LISTED]],
        plan_cost=plan.cost,
    )


def _question(settings: Settings, candidates: pd.DataFrame, archs: list[str]) -> Question:
    dearest = [float(numbers(where(candidates, arch=a), "flops").max()) for a in archs]
    targets = [parse_target(text) for text in settings.targets]
    question = Question(targets, archs, min(dearest), settings.baseline)
    question.check()
    return question


def _horizons_done(candidates: pd.DataFrame, done: frozenset[str]) -> dict[str, int]:
    """Horizons of each unit up to the last run of it that is done."""
    found: dict[str, int] = {}
    count: dict[str, int] = {}
    for unit, run in zip(words(candidates, "unit"), words(candidates, "run_id"), strict=True):
        count[unit] = count.get(unit, 0) + 1
        if run in done:
            found[unit] = count[unit]
    return found


def _laws(points: pd.DataFrame, archs: list[str]) -> tuple[dict[str, LawFit], dict[str, str]]:
    """Laws, and why an architecture has none."""
    fits: dict[str, LawFit] = {}
    reasons: dict[str, str] = {}
    for arch in archs:
        own = where(points, arch=arch) if len(points) else points
        try:
            if len(set(words(own, UNIT)) if len(own) else ()) < FEWEST_CLUSTERS:
                raise AnalysisError(f"fewer than {FEWEST_CLUSTERS} finished runs")
            fits[arch] = fit_law(FORM, own, clusters=UNIT, accounting=True)
        except AnalysisError as error:
            reasons[arch] = str(error)
    return fits, reasons


def _open(
    settings: Settings, candidates: pd.DataFrame, done: Mapping[str, int],
    closed: frozenset[str], left: float, reasons: Mapping[str, str],
) -> Decision:  # fmt: skip
    """The first runs of the architectures that have no law yet; more of them where the first did
    not do."""
    runs: list[str] = []
    cost = 0.0
    for arch in reasons:
        for unit, last in _opening(where(candidates, arch=arch), done, closed):
            own = where(candidates, unit=unit)
            have = done.get(unit, 0)
            runs.append(words(own, "run_id")[last - 1])
            cost += float(numbers(own, "cost")[last - 1])
            cost -= float(numbers(own, "cost")[have - 1]) if have else 0.0
    why = "; ".join(f"{arch}: {reason}" for arch, reason in reasons.items())
    if not runs:
        raise AnalysisError(
            f"every candidate is measured, and there is no law: {why}. Give the experiment more "
            "sizes, horizons or seeds"
        )
    if cost > left:
        raise AnalysisError(
            f"--budget {settings.budget:.3g}: {left:.3g} FLOPs are left, and the runs without "
            f"which no law can be fitted cost {cost:.3g} ({why}). Raise the budget"
        )
    return Decision(why="opening", words=f"no law yet ({why})", runs=runs, cost=cost, widths=[],
                    ahead=[])  # fmt: skip


def _opening(
    rows: pd.DataFrame, done: Mapping[str, int], closed: frozenset[str]
) -> list[tuple[str, int]]:
    """Units of one architecture to begin with, each with the horizon up to which: one run of each
    of the smallest sizes; where those are done and did not do, the cheapest that is left."""
    units = [u for u in dict.fromkeys(words(rows, "unit")) if u not in closed]
    price = {u: float(numbers(where(rows, unit=u), "cost").max()) for u in units}
    units.sort(key=lambda u: price[u])
    sizes: dict[float, str] = {}
    for unit in units:
        sizes.setdefault(float(numbers(where(rows, unit=unit), "n_params")[0]), unit)
    chosen = list(sizes.values())[:OPENING]
    chosen += [u for u in units if u not in chosen][: max(0, OPENING - len(chosen))]
    found: list[tuple[str, int]] = []
    for number, unit in enumerate(chosen):
        ids = words(where(rows, unit=unit), "run_id")
        wanted = len(ids) if number < 2 else math.ceil(len(ids) / 2)
        last = next((k for k in range(wanted, len(ids) + 1) if ids[k - 1]), len(ids))
        if done.get(unit, 0) < last:
            found.append((unit, last))
    if not found:
        rest = [u for u in units if done.get(u, 0) < len(where(rows, unit=u))]
        found = [(u, len(where(rows, unit=u))) for u in rest[:1]]
    return found


def _batch(plan: Plan, count: int) -> list[Purchase]:
    """The first purchases of a plan, one a run: a run that is bought in several stretches is taken
    to the last of them."""
    wanted: dict[int, Purchase] = {}
    for each in plan.purchases:
        before = wanted.get(each.unit)
        if before is not None:
            wanted[each.unit] = replace(each, first=before.first, cost=before.cost + each.cost)
        elif len(wanted) < count:
            wanted[each.unit] = each
    return list(wanted.values())


def _nothing_left(pool: Pool, left: float, shown: list[dict[str, Any]]) -> Decision:
    cheapest = pool.cheapest()
    if cheapest is None:
        return Decision(why="exhausted", words="every candidate is measured", runs=[], cost=0.0,
                        widths=shown, ahead=[])  # fmt: skip
    if cheapest > left:
        return Decision(
            why="budget", words=f"{left:.3g} FLOPs are left of the budget, and the cheapest "
            f"candidate costs {cheapest:.3g}", runs=[], cost=0.0, widths=shown, ahead=[],
        )  # fmt: skip
    return Decision(why="exhausted", words="no candidate would narrow what is asked", runs=[],
                    cost=0.0, widths=shown, ahead=[])  # fmt: skip


def _sentence(reached: bool, plan: Plan, left: float) -> str:
    runs = len({each.unit for each in plan.purchases})
    if reached:
        return "every target is reached; one more batch, so that it is not by luck"
    if plan.reaches:
        return f"{runs} runs for {plan.cost:.3g} FLOPs are expected to reach every target"
    return f"the {left:.3g} FLOPs left, or the candidates, are not expected to reach every target"
