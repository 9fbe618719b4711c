"""One decision of an adaptive sweep: its targets, its design, and what it buys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.fit.law_fit import LawFit
from analysis.io.frames import numbers, where, words
from analysis.io.records import load_sweep
from analysis.judge.adaptive import Settings, State, decide
from analysis.judge.compare import compute_multiplier
from analysis.judge.narrowing import Question, parse_target
from analysis.judge.purchases import RHO, Pool, pooled_noise
from tests.support.worlds import loss_of

ROOT = Path(__file__).resolve().parents[3]
HORIZONS = 1e9 * 2.0 ** np.arange(3)


def _pool(sizes: int = 5, seeds: int = 2, noise: float = 0.004) -> pd.DataFrame:
    """Runs of two architectures at three horizons: candidates with their losses."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for seed, k, (arch, worse) in itertools.product(
        range(seeds), range(sizes), (("llama", 1.0), ("tnl", 1.03))
    ):
        n = 2e7 * 2.5**k
        losses = worse * loss_of(np.array(n), HORIZONS)
        for j, d in enumerate(HORIZONS):
            rows.append({
                "unit": f"{arch}-{k}-{seed}", "run_id": f"{arch}-{k}-{seed}@{j}", "arch": arch,
                "size": f"s{k}", "size_seed": f"s{k} seed {seed}", "n_params": n, "tokens": d,
                "flops": 6 * n * d, "cost": 6 * n * (d + 0.2 * HORIZONS[:j].sum()),
                "loss": float(losses[j]) * math.exp(noise * rng.standard_normal()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _measured(pool: pd.DataFrame, done: set[str]) -> pd.DataFrame:
    """The points of runs and of all horizons before their ends."""
    last = dict(zip(words(pool, "run_id"), numbers(pool, "tokens").tolist(), strict=True))
    ends: dict[str, float] = {}
    for run in done:
        unit = run.partition("@")[0]
        ends[unit] = max(ends.get(unit, 0.0), last[run])
    keep = [d <= ends.get(u, 0.0) for u, d in zip(pool["unit"], pool["tokens"], strict=True)]
    found = pool[np.array(keep)]
    assert isinstance(found, pd.DataFrame)
    return found


def _follow(settings: Settings, pool: pd.DataFrame) -> tuple[list[Any], set[str], float]:
    """Decisions until one stops, the runs that were chosen, and their FLOPs."""
    done: set[str] = set()
    found: list[Any] = []
    spent, reached = 0.0, False
    while True:
        decision = decide(settings, pool.drop(columns="loss"), _measured(pool, done),
                          State(done=frozenset(done), spent=spent, reached=reached))  # fmt: skip
        found.append(decision)
        if decision.stops:
            return found, done, spent
        done |= set(decision.runs)
        spent += decision.cost
        reached = decision.why == "confirm"


def _fits(points: pd.DataFrame, draws: int = 0) -> dict[str, LawFit]:
    return {
        arch: fit_law("chinchilla", where(points, arch=arch), clusters="size_seed",
                      accounting=True, bootstrap=draws)
        for arch in ("llama", "tnl")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("width(a)<0.05", ("a", None, 0.05)),
        (" width( loss@1e18 [tnl] ) < 2e-2", ("loss@1e18", "tnl", 0.02)),
        ("width(loss@1e9,2e10)<0.1", ("loss@1e9,2e10", None, 0.1)),
        ("width(multiplier@1e18)<0.3", ("multiplier@1e18", None, 0.3)),
    ],
)
def test_targets(text: str, parts: tuple[str, str | None, float]) -> None:
    target = parse_target(text)
    assert (target.quantity, target.arch, target.width) == parts
    assert parse_target(target.text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a<0.05", r"write width\(QUANTITY\)<NUMBER"),
        ("width(a)>0.05", r"write width\(QUANTITY\)<NUMBER"),
        ("width(a)<small", "'small' is not a width"),
        ("width(a)<-1", "'-1' is not a width"),
        ("width(a)<inf", "'inf' is not a width"),
        ("width(multiplier@x)<1", "C of multiplier@C"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ()}, "needs a --target"),
        ({"budget": 0.0}, "--budget 0: a number of FLOPs above 0"),
        ({"budget": math.nan}, "--budget nan"),
        ({"batch": 0}, "--batch 0"),
        ({"targets": ("width(gamma)<1",)}, "quantity 'gamma' is not known"),
        ({"targets": ("width(a[rwkv])<1",)}, "the experiment has no rwkv; it has llama, tnl"),
        ({"targets": ("width(multiplier[llama])<1",)}, "llama is what the others are compared"),
        ({"budget": 1e15}, "the runs without which no law can be fitted cost"),
    ],
)
def test_bad_questions_are_explained(changes: dict[str, Any], message: str) -> None:
    pool = _pool()
    values: dict[str, Any] = {"targets": ("width(a)<0.05",), "budget": 1e30, "batch": 2, "draws": 2}
    with pytest.raises(AnalysisError, match=message):
        _follow(Settings(**(values | changes)), pool)


def test_a_multiplier_needs_two_architectures() -> None:
    pool = where(_pool(), arch="tnl")
    settings = Settings(targets=("width(multiplier)<1",), budget=1e30, batch=2)
    with pytest.raises(AnalysisError, match="a multiplier compares architectures"):
        decide(settings, pool, pool.head(0), State())


def test_too_small_an_experiment_says_so() -> None:
    pool = _pool(sizes=3, seeds=1)
    settings = Settings(targets=("width(a)<1",), budget=1e30, batch=2)
    with pytest.raises(AnalysisError, match="every candidate is measured, and there is no law"):
        _follow(settings, pool)


def test_widths_are_those_of_a_report() -> None:
    """The interval of `LawFit`, and that of `compute_multiplier`."""
    pool = _pool()
    fits = _fits(pool, 200)
    compute = 1e18
    targets = [parse_target(t) for t in ("width(a)<1", "width(multiplier@1e18)<1")]
    a_llama, a_tnl, multiplier = Question(targets, ["llama", "tnl"], 1.0).measure(fits)
    for width, arch in ((a_llama, "llama"), (a_tnl, "tnl")):
        low, high = fits[arch].interval("a")
        assert width.now == pytest.approx(high - low, rel=1e-12)
    losses = fits["llama"].frontier(np.array([compute]))
    row = compute_multiplier(fits["tnl"], fits["llama"], losses=losses).frame.iloc[0]
    assert multiplier.now == pytest.approx(math.log(row["hi"] / row["lo"]), rel=1e-9)


def _natural_rows(fit: LawFit, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d ln L / d (E, A, alpha, B, beta), written out."""
    p = fit.params
    loss = p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]
    return np.stack([
        1 + 0 * n, n ** -p["alpha"], -p["A"] * np.log(n) * n ** -p["alpha"],
        d ** -p["beta"], -p["B"] * np.log(d) * d ** -p["beta"],
    ], axis=1) / loss[:, None]  # fmt: skip


def _whitened(rows: np.ndarray) -> np.ndarray:
    """Of one run, whose horizons double: noise of 0.7 that of the one before, plus news."""
    rows = rows.copy()
    rows[1:] = (rows[1:] - 0.7 * rows[:-1]) / math.sqrt(1 - 0.7**2)
    return rows


def _standard_error(fit: LawFit, rows: np.ndarray, noise: float) -> float:
    """Of alpha, from weighted rows in natural coordinates."""
    triangle = np.asarray(np.linalg.qr(rows / noise, mode="r"))
    return float(np.linalg.norm(np.linalg.solve(triangle.T, np.eye(5)[2])))


def _alpha_pool(pool: pd.DataFrame, done: Mapping[str, int], goal: float) -> tuple[Pool, LawFit]:
    """Of alpha of llama alone, with so many horizons measured of each unit."""
    own = where(pool, arch="llama")
    keep = own.groupby("unit").cumcount().to_numpy() < np.array([done.get(u, 0) for u in own.unit])
    points = own[keep]
    assert isinstance(points, pd.DataFrame)
    fit = fit_law("chinchilla", points, clusters="size_seed", accounting=True)
    widths = Question([parse_target(f"width(alpha)<{goal}")], ["llama"], 1.0).measure(
        {"llama": fit}
    )
    return Pool(own, {"llama": fit}, widths, done, frozenset()), fit


def test_expected_widths_are_those_of_the_enlarged_design() -> None:
    pool = _pool(seeds=1)
    done = {f"llama-{k}-0": 3 if k == 0 else 2 for k in range(4)}
    found, fit = _alpha_pool(pool, done, 1e-3)
    noise = pooled_noise({"llama": fit})
    wide = 2 * 1.6448536
    begun = [3, 2, 2, 2, 0]

    def width(ends: Sequence[int]) -> float:
        parts: list[np.ndarray] = []
        for k, end in enumerate(ends):
            unit = where(pool, unit=f"llama-{k}-0").iloc[:end]
            n, d = numbers(unit, "n_params"), numbers(unit, "tokens")
            parts.append(_whitened(_natural_rows(fit, n, d)))
        return wide * _standard_error(fit, np.vstack(parts), noise)

    assert found.now[0] == pytest.approx(width(begun), rel=0.01)
    for each in found.options(begun, math.inf):
        ends = [each.last if k == each.unit else end for k, end in enumerate(begun)]
        assert found.expected([each])[0] == pytest.approx(width(ends), rel=0.01)
        whole, before = (numbers(where(pool, unit=f"llama-{each.unit}-0"), "cost"), each.first)
        assert each.cost == whole[each.last - 1] - (whole[before - 1] if before else 0.0)


def test_plans_are_near_the_cheapest_of_all_plans() -> None:
    """Against every combination of stretches."""
    pool = _pool(sizes=5, seeds=2)
    done = {f"llama-{k}-0": 3 if k < 2 else 2 for k in range(4)}
    start, _ = _alpha_pool(pool, done, 1.0)
    for share in (0.9, 0.7):
        goal = float(start.now[0]) * share
        found, _ = _alpha_pool(pool, done, goal)
        plan = found.plan(math.inf)
        assert plan.reaches
        assert plan.widths[0] < goal
        begun = [done.get(u, 0) for u in dict.fromkeys(where(pool, arch="llama")["unit"])]
        first = found.options(begun, math.inf)
        by_unit = [[None, *(p for p in first if p.unit == u)] for u in range(len(begun))]
        best = math.inf
        for combination in itertools.product(*by_unit):
            chosen = [p for p in combination if p is not None]
            cost = sum(p.cost for p in chosen)
            if cost < best and found.expected(chosen)[0] < goal:
                best = cost
        assert best <= plan.cost * (1 + 1e-9)
        assert plan.cost <= 1.35 * best


def test_a_loss_below_what_a_law_reaches_is_still_narrowed() -> None:
    """The irreducible loss of one lies above what the other reaches: its compute has no end, and no
    gradient; what it needs to know is its own frontier."""
    pool = _pool(sizes=4, seeds=1)
    other = where(pool, arch="tnl")
    pool.loc[other.index, "loss"] = 2.6 + 0.3 * (other["loss"] - 1.69)
    fits = {a: f.bootstrap(50) for a, f in _fits(pool, 2).items()}
    (width,) = Question(
        [parse_target("width(multiplier@1e23)<0.5")], ["llama", "tnl"], 1e19
    ).measure(fits)
    assert width.now == math.inf
    assert all(np.isfinite(g).all() for g in width.gradients.values())
    found = Pool(_pool(sizes=6, seeds=2), fits, [width], {}, frozenset())
    assert found.now[0] >= 1.0
    assert found.plan(math.inf).purchases


def _settings() -> Settings:
    """Twice the width that all candidates together give."""
    widest = max(np.diff(fit.interval("a"))[0] for fit in _fits(_pool(), 40).values())
    return Settings(targets=(f"width(a)<{2 * widest:.3g}",), budget=1e30, batch=2, draws=40)


@pytest.fixture(scope="module")
def followed() -> tuple[list[Any], set[str], float]:
    return _follow(_settings(), _pool())


def test_a_target_is_reached_without_the_whole_grid(followed) -> None:
    decisions, done, spent = followed
    pool = _pool()
    assert decisions[0].why == "opening"
    assert [d.why for d in decisions][-2:] == ["confirm", "target"]
    fits = _fits(_measured(pool, done), 40)
    goal = parse_target(_settings().targets[0]).width
    assert all(np.diff(fit.interval("a"))[0] < goal for fit in fits.values())
    total = sum(numbers(where(pool, unit=u), "cost").max() for u in set(pool["unit"]))
    assert spent < 0.6 * total
    ends = {run.partition("@")[0]: 0.0 for run in done}
    for run in done:  # what was paid is what the longest run of each unit costs
        unit = run.partition("@")[0]
        ends[unit] = max(ends[unit], float(where(pool, run_id=run)["cost"].iloc[0]))
    assert spent == pytest.approx(sum(ends.values()))


def test_the_same_data_give_the_same_decisions(followed) -> None:
    again = _follow(_settings(), _pool())[0]
    assert [d.as_dict() for d in again] == [d.as_dict() for d in followed[0]]


def test_a_budget_is_kept(followed) -> None:
    opening = followed[0][0].cost
    settings = Settings(targets=("width(a)<1e-6",), budget=2 * opening, batch=2, draws=10)
    decisions, _, spent = _follow(settings, _pool())
    assert decisions[-1].why == "budget"
    assert opening < spent <= 2 * opening


def test_it_ends_when_everything_is_measured() -> None:
    pool = _pool(sizes=4, seeds=1)
    settings = Settings(targets=("width(a)<1e-6",), budget=1e30, batch=9, draws=10)
    decisions, done, _ = _follow(settings, pool)
    assert decisions[-1].why == "exhausted"
    assert len(_measured(pool, done)) == len(pool)


def test_runs_without_a_result_are_not_asked_for_again() -> None:
    pool = _pool()
    settings = Settings(targets=("width(a)<0.01",), budget=1e30, batch=2, draws=10)
    first = decide(settings, pool, pool.head(0), State())
    bad = first.runs[0]
    closed = {bad: "diverged"}
    rest = frozenset(first.runs[1:])
    state = State(done=rest, closed=closed, spent=first.cost)
    second = decide(settings, pool, _measured(pool, set(rest)), state)
    unit = bad.partition("@")[0]
    assert second.runs
    assert not [run for run in second.runs if run.partition("@")[0] == unit]


def test_horizons_of_a_run_correlate_as_the_design_takes_it() -> None:
    """Residuals of seeds of the kept small ladder about the mean of their size and horizon."""
    points = load_sweep(ROOT / "experiments" / "results" / "small_ladder.zip").points
    points = points[points["size"].isin(["d16", "d24", "d32"])]
    logs = np.log(points["loss"])
    rest = logs - logs.groupby([points[c] for c in ("arch", "size", "tokens")]).transform("mean")
    order = points.groupby("run_id")["tokens"].rank()
    table = pd.DataFrame({"run": points["run_id"], "k": order, "rest": rest})
    wide = table.pivot_table(index="run", columns="k", values="rest")
    found = [wide[k].corr(wide[k + 1]) for k in (1.0, 2.0, 3.0)]
    assert min(found) > RHO - 0.1
    assert max(found) < RHO + 0.1
