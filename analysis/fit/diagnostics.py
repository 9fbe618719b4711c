"""What a fit can and cannot say: convergence, identifiability, outliers, in words.

`diagnose` returns typed warnings. Identifiability is read from the linearised law: the direction in
parameter space along which predictions change least, scaled to the size that the noise could hide,
is translated back into the parameters people know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import FitWarning
from analysis.fit.problem import Problem
from analysis.fit.solver import EXACT, GRADIENT_TOLERANCE, Solution
from analysis.fit.uncertainty import FEW_CLUSTERS, Draws, jackknife
from analysis.units import Array

OF_DRAWS = ("few_clusters", "unstable_resamples", "one_run_decides")
"""Warnings that belong to a bootstrap and are renewed with it."""
_SAME_OPTIMUM = 1e-6
_FLAT_E, _FLAT_EXPONENT = 0.15, 0.35
_OPEN = float(np.log(2.0))
"""Two standard errors of the logarithm of a scale from which it is called open."""
_OUTLIER = 8.0
_DECISIVE = 0.8
"""Share of the jackknife variance from which one run is said to decide."""
_WEAK = 2.0
"""A term varying over the points by less than this many times the noise is called weak."""
_HIGH_FLOOR, _SHORT = 0.8, 10.0
"""E over the lowest loss, and tokens per parameter, at which larger runs are often mispredicted."""
_FLOOR = 0.1
"""Share of the smallest loss by which an E below it is taken to move."""
_NO_FLOOR = 0.01
"""An E below this share of the smallest loss is called zero."""


@dataclass(frozen=True)
class Evidence:
    """Why the optimum may be believed."""

    starts: int
    """Starting points tried."""
    reached: int
    """Starts that ended at the best objective (to 1e-6 relative)."""
    optima: int
    """Distinct stationary values of the objective found."""
    gradient: float
    """Largest component of the gradient relative to the sum of its absolute terms; 0 is perfect."""
    iterations: int
    """Newton iterations of the best start."""
    condition: float
    """Condition number of the column-scaled Jacobian in centred coordinates; below 100 is good."""
    inside_delta: float
    """Share of points whose residual is within delta, where the loss is quadratic."""


def evidence(problem: Problem, solution: Solution) -> Evidence:
    """Convergence of a multi-start solution."""
    best = int(solution.value.argmin())
    floor = float(solution.value[best])
    weight = problem.observations.weight
    exact = float((weight * problem.robust.rho(np.full_like(weight, EXACT))).sum())
    gap = np.maximum(solution.value - floor - exact, 0.0) / max(floor, exact)
    stationary = np.sort(gap[solution.converged])
    optima = 1 + int((np.diff(stationary) > _SAME_OPTIMUM).sum()) if len(stationary) else 0
    residual = problem.residuals(solution.theta[best])
    _, singular, _ = _directions(problem, solution.theta[best])
    return Evidence(
        starts=len(solution.value),
        reached=int((gap <= _SAME_OPTIMUM).sum()),
        optima=optima,
        gradient=float(solution.gradient[best]),
        iterations=int(solution.iterations[best]),
        condition=float(singular[0] / max(singular[-1], 1e-300)),
        inside_delta=float(np.mean(np.abs(residual) <= problem.robust.delta)),
    )


def _directions(problem: Problem, theta: Array) -> tuple[Array, Array, Array]:
    """Column norms (p,), singular values (p,) and right vectors (p, p) of the scaled Jacobian."""
    _, jacobian, _ = problem.law.evaluate(theta[None], problem.x)
    weighted = jacobian[0].T * np.sqrt(problem.observations.weight)[:, None]
    norms = np.maximum(np.linalg.norm(weighted, axis=0), 1e-12)
    _, singular, right = np.linalg.svd(weighted / norms, full_matrices=False)
    return norms, singular, right


def diagnose(problem: Problem, theta: Array, facts: Evidence) -> list[FitWarning]:
    """Warnings about one estimate."""
    found = [*_convergence(facts), *_at_bounds(problem, theta)]
    residual = problem.residuals(theta)
    flat = _flat(problem, theta, residual)
    found += [flat] if flat else []
    return [
        *found,
        *_open_scales(problem, theta, residual),
        *_high_floor(problem, theta),
        *_weak(problem, theta, residual),
        *_outliers(problem, residual),
    ]


def _high_floor(problem: Problem, theta: Array) -> list[FitWarning]:
    """A floor that bent laws and short runs push up.

    Over 157 hold-outs of 27 public tables, floors of .8 to .9 of the lowest loss went with losses
    of larger runs 2.5 % below their prediction and 58 % of them inside 90 % intervals; above .9
    with 4.5 % and 67 %; below .7 with under 1 % and 85 % to 89 %.
    """
    law, obs = problem.law, problem.observations
    if not law.has_floor or not {"n", "d"} <= obs.columns.keys():
        return []
    i = law.parameters.index("E")
    floor = float(problem.natural(theta)[i])
    share = floor / float(obs.loss.min())
    if problem.lower[i] == problem.upper[i] or share <= _HIGH_FLOOR:
        return []
    found = [
        FitWarning(
            "high_floor",
            f"E = {floor:.4g} is {share:.0%} of the lowest loss. Floors above {_HIGH_FLOOR:.0%} "
            "are mostly fitted too high: on public tables larger runs then came out 2 % to 5 % "
            "better than predicted, and a third or more of them outside 90 % intervals. Hold E "
            "(fix), or add larger runs.",
            {"share": share},
        )
    ]
    ratio = obs.columns["d"] / obs.columns["n"]
    short = np.flatnonzero(ratio < _SHORT)
    if len(short) > 0:
        names = [obs.row_names[k] for k in short[:3]]
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        found.append(
            FitWarning(
                "undertrained",
                f"{len(short)} of {len(ratio)} points have fewer than {_SHORT:g} tokens per "
                f"parameter ({'; '.join(names)}{more}). Their loss falls steeply in D, which one "
                "exponent takes as steepness everywhere and E as curvature: see what the law is "
                "without them.",
                {"count": len(short)},
            )
        )
    return found


def _convergence(facts: Evidence) -> list[FitWarning]:
    found: list[FitWarning] = []
    if facts.gradient > 10 * GRADIENT_TOLERANCE and facts.optima == 0:
        found.append(
            FitWarning(
                "not_converged",
                f"No start reached a stationary point (relative gradient {facts.gradient:.2g}): "
                "the data may not support this form.",
                {"gradient": facts.gradient},
            )
        )
    if facts.optima > 1 and facts.reached < facts.starts / 2:
        found.append(
            FitWarning(
                "several_optima",
                f"{facts.starts} starts ended in {facts.optima} different optima; the lowest is "
                f"reported, {facts.reached} start(s) reached it.",
                {"optima": facts.optima, "reached": facts.reached, "starts": facts.starts},
            )
        )
    return found


def _at_bounds(problem: Problem, theta: Array) -> list[FitWarning]:
    found: list[FitWarning] = []
    values = problem.natural(theta)
    for i, name in enumerate(problem.law.parameters):
        if problem.lower[i] == problem.upper[i]:
            continue
        if name == "E" and values[i] < _NO_FLOOR * float(problem.observations.loss.min()):
            found.append(
                FitWarning(
                    "no_irreducible",
                    "The irreducible loss E went to zero: within this range the data look like a "
                    "pure power law. Predictions far outside will be too low if there is a floor "
                    "after all.",
                    {"E": float(values[i])},
                )
            )
            continue
        low = theta[i] <= problem.lower[i] + 1e-9
        if not low and not theta[i] >= problem.upper[i] - 1e-9:
            continue
        found.append(
            FitWarning(
                "at_bound",
                f"{name} = {values[i]:.4g} is at its {'lower' if low else 'upper'} bound: the data "
                "ask for more, or do not determine it.",
                {"parameter": name, "value": float(values[i])},
            )
        )
    return found


def _flat(problem: Problem, theta: Array, residual: Array) -> FitWarning | None:
    """The combination of parameters that two standard deviations of noise leave open."""
    norms, singular, right = _directions(problem, theta)
    freedom = max(1, len(residual) - problem.law.size)
    noise = float(np.sqrt((problem.observations.weight * residual**2).sum() / freedom))
    before = problem.natural(theta)
    scale = np.abs(before)
    # The logarithm of an E next to nothing says nothing: it moves in units of a small floor.
    floors = [i for i, name in enumerate(problem.law.parameters) if name == "E"]
    scale[floors] = np.maximum(scale[floors], _FLOOR * float(problem.observations.loss.min()))
    units = scale / np.maximum(np.abs(before), 1e-300)
    step = 2.0 * noise / max(singular[-1], 1e-12) * right[-1] / (norms * units)
    step *= min(1.0, 1.0 / max(np.abs(step).max(), 1e-300))
    after, other = (
        problem.natural(np.clip(theta + side * step, problem.lower, problem.upper))
        for side in (1, -1)
    )
    for i in floors:
        if units[i] > 1.0:
            after[i], other[i] = (max(0.0, before[i] + side * step[i] * scale[i])
                                  for side in (1, -1))  # fmt: skip
    moves: dict[str, tuple[float, float]] = {}
    for i, name in enumerate(problem.law.parameters):
        limit = _FLAT_E if name == "E" else _FLAT_EXPONENT if name in problem.law.exponents else 0
        if limit and abs(after[i] - other[i]) > 2 * limit * scale[i]:
            moves[name] = (float(other[i]), float(after[i]))
    if not moves:
        return None
    text = ", ".join(f"{name} from {a:.3g} to {b:.3g}" for name, (a, b) in moves.items())
    return FitWarning(
        "flat_direction",
        f"The data leave a direction open: moving {text} together with the other parameters "
        "changes predictions by less than the noise. Predictions inside the data are fine; these "
        "parameters, and extrapolation, are not determined. A wider range of sizes or tokens "
        "helps.",
        {name: list(pair) for name, pair in moves.items()},
    )


def _open_scales(problem: Problem, theta: Array, residual: Array) -> list[FitWarning]:
    """Scales that the noise leaves open by themselves: runs that hardly repeat their data say
    nothing of what repetition is worth, and weights of many bits nothing of few."""
    law = problem.law
    if not law.scales:
        return []
    norms, singular, right = _directions(problem, theta)
    freedom = max(1, len(residual) - law.size)
    noise = float(np.sqrt((problem.observations.weight * residual**2).sum() / freedom))
    spread = noise * np.sqrt((right**2 / np.maximum(singular, 1e-12)[:, None] ** 2).sum(0)) / norms
    values = problem.natural(theta)
    found: list[FitWarning] = []
    for name in law.scales:
        i = law.parameters.index(name)
        free = problem.lower[i] < problem.upper[i]
        if free and 2.0 * spread[i] > _OPEN:
            found.append(
                FitWarning(
                    "open_scale",
                    f"The data do not determine {name} = {values[i]:.3g}: the noise leaves it open "
                    "by more than a factor of two. Runs further into its effect help.",
                    {"parameter": name, "log_se": float(min(spread[i], 1e6))},
                )
            )
    return found


def _weak(problem: Problem, theta: Array, residual: Array) -> list[FitWarning]:
    """Terms in N or D that hardly move the loss: a steep one then fits the noise of a few points,
    and looks determined to the linearised law."""
    noise = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    if noise < EXACT:
        return []
    _, jacobian, _ = problem.law.evaluate(theta[None], problem.x)
    found: list[FitWarning] = []
    for name, axis in (("A", "N"), ("B", "D")):
        if not {"A", "B"} <= set(problem.law.parameters):
            continue
        spread = float(np.std(jacobian[0, problem.law.parameters.index(name)]))
        if spread < _WEAK * noise:
            found.append(
                FitWarning(
                    "weak_term",
                    f"The term in {axis} moves the loss by {spread:.2%} over the points, which "
                    f"scatter by {noise:.2%}: {name} and its exponent may describe noise. A wider "
                    f"range of {axis} helps.",
                    {"parameter": name, "spread": spread, "noise": noise},
                )
            )
    return found


def _outliers(problem: Problem, residual: Array) -> list[FitWarning]:
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    far = np.flatnonzero(np.abs(residual - np.median(residual)) > _OUTLIER * max(spread, 1e-12))
    if not len(far) or spread < 1e-9:
        return []
    worst = far[np.argsort(-np.abs(residual[far]))][:5]
    rows = [problem.observations.rows[i] for i in worst]
    names = [problem.observations.row_names[i] for i in worst]
    return [
        FitWarning(
            "outliers",
            f"{len(far)} point(s) lie more than {_OUTLIER:g} robust standard deviations from the "
            f"law (worst: {'; '.join(names)}). Nothing was dropped; see the "
            "sensitivity table for what dropping them would change.",
            {"count": len(far), "rows": [str(r) for r in rows], "names": names},
        )
    ]


def diagnose_draws(problem: Problem, theta: Array, draws: Draws) -> list[FitWarning]:
    """Warnings, of the codes `OF_DRAWS`, about the intervals of one estimate."""
    found: list[FitWarning] = []
    if len(draws.labels) < FEW_CLUSTERS:
        found.append(
            FitWarning(
                "few_clusters",
                f"Intervals rest on {len(draws.labels)} runs; with fewer than {FEW_CLUSTERS} "
                "they tend to be too narrow.",
                {"clusters": len(draws.labels)},
            )
        )
    samples = len(draws.values)
    if draws.unconverged > 0.01 * samples:
        found.append(
            FitWarning(
                "unstable_resamples",
                f"{draws.unconverged} of {samples} refits did not reach a stationary point: "
                "the form is close to unidentified on resampled data.",
                {"unconverged": draws.unconverged, "samples": samples},
            )
        )
    decisive = _decisive_run(problem, theta)
    return [*found, decisive] if decisive else found


def _decisive_run(problem: Problem, theta: Array) -> FitWarning | None:
    """The run that makes up most of the jackknife variance of a parameter, if there is one."""
    labels, values = jackknife(problem, theta)
    full = problem.natural(theta)
    squares = (values - full) ** 2
    share = squares / np.maximum(squares.sum(axis=0), 1e-300)
    run, parameter = (int(k) for k in np.unravel_index(int(share.argmax()), share.shape))
    largest, name = float(share[run, parameter]), problem.law.parameters[parameter]
    if largest <= _DECISIVE:
        return None
    return FitWarning(
        "one_run_decides",
        f"{labels[run]} alone makes up {largest:.0%} of what leaving out runs one by one does to "
        f"{name} (from {full[parameter]:.4g} to {values[run, parameter]:.4g} without it): check "
        "that run first.",
        {"run": labels[run], "parameter": name, "share": largest},
    )
