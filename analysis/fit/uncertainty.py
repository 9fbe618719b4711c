"""Intervals from refits: bootstrap over runs, profile, leave-one-run-out.

The unit is the run (a cluster of points), never the row: checkpoints of one run share its noise,
and resampling rows made intervals seven times too narrow on a public suite of 22 runs.

    pairs   each refit weighs every run by how often it is drawn with replacement
    wild    each refit flips and stretches the residuals of every run by one random factor (Webb's
            six points, mean 0, variance 1): y* = fit + v_run * residual. Every run stays in every
            refit, which is what few runs need (Cameron, Gelbach, Miller 2008; Webb 2014). Residuals
            are first inflated for leverage, since a fit through few points hides their noise.

`auto` takes wild up to 40 runs and pairs above. Draws are a function of (seed, cluster labels,
method): fits whose clusters carry the same labels are drawn in pairs, so that what the runs share
cancels in comparisons.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.problem import Problem
from analysis.fit.robust import Robust
from analysis.io.saved import array
from analysis.units import Array

Method = Literal["auto", "pairs", "wild"]
Progress = Callable[[int, int], None]
"""Called with (refits done, refits in all)."""

PAIRS_FROM = 41
"""`auto` draws runs with replacement from this many runs on."""
FEWEST_CLUSTERS = 4
FEW_CLUSTERS = 9
_WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
_BLOCK = 1000
MOST_REFITTED = 10_000
"""Points that are refitted. Of more, so many are taken, evenly over every run, whose rows repeat
one another; the refits are moved by what that changes in the estimate."""
MOST_LEFT_OUT = 40
"""Runs that are left out exactly, one by one; of more, those that matter most to first order."""
_FAR, _EXACT = 8.0, 1e-7


@dataclass(frozen=True)
class Draws:
    """Refits of a bootstrap."""

    values: Array
    """(b, p) natural parameters of each refit."""
    method: str
    """`pairs` or `wild`."""
    seed: int
    """Seed of the resampling plan."""
    labels: list[str]
    """Clusters that were resampled."""
    cluster_name: str
    """The column they come from."""
    unconverged: int
    """Refits that did not reach a stationary point (they are kept)."""

    def paired_with(self, other: Draws) -> bool:
        """Whether the i-th draws of both come from the same resampled runs."""
        return (self.seed, self.method, self.labels, len(self.values)) == (
            other.seed,
            other.method,
            other.labels,
            len(other.values),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON types, full precision."""
        return {**self.__dict__, "values": self.values.tolist()}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Draws:
        """Inverse of `as_dict`."""
        return Draws(**{**record, "values": array(record, "values")})


def bootstrap(
    problem: Problem,
    theta: Array,
    *,
    samples: int,
    method: Method = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Draws:
    """Refits `samples` resampled data sets, each from the estimate `theta` (p,).

    Raises:
        AnalysisError: fewer than four runs, or a method that is not known.
    """
    obs = problem.observations
    if method not in get_args(Method):
        raise AnalysisError(f"bootstrap method {method!r} is not one of {get_args(Method)}")
    if samples < 2:
        raise AnalysisError(f"a bootstrap needs at least 2 samples, got {samples}")
    if len(obs.labels) < FEWEST_CLUSTERS:
        raise AnalysisError(
            f"{len(obs.labels)} run(s) in {obs.names['clusters']!r}: a bootstrap over runs needs "
            f"at least {FEWEST_CLUSTERS}. Name a finer cluster column, or fit without intervals"
        )
    one_sided = problem.robust.name == "asymmetric"
    if method == "wild" and one_sided:
        raise AnalysisError("the wild bootstrap mirrors residuals, which the asymmetric objective "
                            "takes as one-sided: use method='pairs'")  # fmt: skip
    if method == "auto":
        method = "wild" if len(obs.labels) < PAIRS_FROM and not one_sided else "pairs"
    whole = theta
    problem = problem.thinned(MOST_REFITTED)
    if len(problem.observations.loss) < len(obs.loss):
        theta = problem.solve(whole).theta[0]
    obs = problem.observations
    fitted = problem.law.log_loss(theta, problem.x)
    residual = np.empty(0)
    if method == "wild":
        residual = inflated_residuals(problem, theta)
        if not problem.robust.gaussian:  # such a fit spends p points exactly
            points, size = len(residual), problem.law.size
            residual = residual * np.sqrt(points / max(1, points - size))
    values: list[Array] = []
    unconverged = done = 0
    for factors in _plan(method, obs.labels, samples, seed):
        start = np.tile(theta, (len(factors), 1))
        spread = factors[:, obs.cluster]
        if method == "pairs":
            solution = problem.solve(start, weight=spread * obs.weight)
        else:
            solution = problem.solve(start, y=fitted + spread * residual)
        values.append(problem.natural(solution.theta + (whole - theta)))
        unconverged += int((~solution.converged).sum())
        done += len(factors)
        if progress is not None:
            progress(done, samples)
    return Draws(
        values=np.concatenate(values),
        method=method,
        seed=seed,
        labels=list(obs.labels),
        cluster_name=obs.names["clusters"],
        unconverged=unconverged,
    )


def _plan(method: str, labels: list[str], samples: int, seed: int) -> Iterator[Array]:
    """Random factors (block, clusters), a function of the arguments alone.

    Equal labels give equal factors; other labels give independent ones, so that unrelated fits are
    not correlated by a common seed.
    """
    clusters = len(labels)
    rng = np.random.default_rng([seed, zlib.crc32("\n".join(labels).encode())])
    for begin in range(0, samples, _BLOCK):
        count = min(_BLOCK, samples - begin)
        if method == "pairs":
            drawn = (
                rng.integers(0, clusters, (count, clusters)) + clusters * np.arange(count)[:, None]
            )
            counts = np.bincount(drawn.ravel(), minlength=count * clusters)
            yield counts.reshape(count, clusters).astype(float)
        else:
            yield _WEBB[rng.integers(0, 6, (count, clusters))]


def inflated_residuals(problem: Problem, theta: Array) -> Array:
    """log measured - log predicted (m,), as large as if each run had been left out of the fit.

    Runs pull the law towards themselves. With H the hat matrix of the linearised law, the residuals
    of run g become (I - H_gg)^-1 r_g, which approximates the jackknife (Bell and McCaffrey 2002,
    "CR3"); eigenvalues of I - H_gg are floored at 0.2.

    A fit that nearly minimises absolute deviations also passes through as many points as it has
    parameters, and their zero residuals hide the noise. The residuals are therefore those of a
    pilot fit from the same start, Huber at 1.5 times their robust spread.

    Points further than 8 robust standard deviations from the law are no sample of the noise: unless
    the fit is by least squares, which follows them, their residuals count as 8.
    """
    residual = problem.residuals(theta)
    spread = 1.4826 * float(np.median(np.abs(residual)))
    bounded = not problem.robust.gaussian and spread > _EXACT
    most = _FAR * spread if bounded else np.inf
    rms = float(np.sqrt(np.mean(np.clip(residual, -most, most) ** 2)))
    spread = max(spread, 0.5 * rms, 1e-9)
    if not problem.robust.gaussian:
        pilot = dataclasses.replace(problem, robust=Robust("huber", 1.5 * spread))
        residual = problem.residuals(pilot.solve(theta).theta[0])
    residual = np.clip(residual, -most, most)
    obs = problem.observations
    _, jacobian, _ = problem.law.evaluate(theta[None], problem.x)
    root = np.sqrt(obs.weight)
    left, singular, _ = np.linalg.svd(jacobian[0].T * root[:, None], full_matrices=False)
    left = left[:, singular > 1e-10 * singular[0]]
    result = np.empty_like(residual)
    for g in range(len(obs.labels)):
        rows = np.flatnonzero(obs.cluster == g)
        # I - U U^T has eigenvalues 1 - s^2 along the left singular vectors of U, and 1 elsewhere
        basis, size, _ = np.linalg.svd(left[rows], full_matrices=False)
        along = basis.T @ (residual[rows] * root[rows])
        growth = 1.0 / np.maximum(1.0 - size**2, 0.2) - 1.0
        result[rows] = residual[rows] + basis @ (growth * along) / root[rows]
    return -result


def quantiles(draws: Array, level: float) -> tuple[Array, Array]:
    """Central interval of draws along the first axis.

    Raises:
        AnalysisError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise AnalysisError(f"level must lie between 0 and 1, got {level}; 0.9 is usual")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def jackknife(problem: Problem, theta: Array) -> tuple[list[str], Array]:
    """Leave each run out once: labels (g,) and natural parameters (g, p).

    With more runs than `MOST_LEFT_OUT` every shift is first taken to first order (the infinitesimal
    jackknife), and those that move any parameter most are then solved.
    """
    part = problem.thinned(MOST_REFITTED)
    whole, theta = theta, theta if part is problem else part.solve(theta).theta[0]
    problem, obs = part, part.observations
    count = len(obs.labels)
    exact = np.arange(count)
    moved = np.tile(theta, (count, 1))
    if count > MOST_LEFT_OUT:
        moved = moved + _first_order(problem, theta)
        share = np.abs(moved - theta)
        share = share / np.maximum(np.sqrt((share**2).sum(axis=0)), 1e-300)
        exact = np.argsort(-share.max(axis=1), kind="stable")[:MOST_LEFT_OUT]
    weight = obs.weight * (obs.cluster[None, :] != exact[:, None])
    moved[exact] = problem.solve(np.tile(theta, (len(exact), 1)), weight=weight).theta
    return list(obs.labels), problem.natural(
        np.clip(moved + (whole - theta), problem.lower, problem.upper)
    )


def _first_order(problem: Problem, theta: Array) -> Array:
    """By how much leaving out each run moves the parameters, H^-1 g_run (g, p)."""
    obs = problem.observations
    predicted, jacobian, state = problem.law.evaluate(theta[None], problem.x)
    residual = predicted - problem.y
    slope = obs.weight * problem.robust.psi(residual)
    hessian = problem.law.hessian(state, obs.weight * problem.robust.curvature(residual), slope)[0]
    force = slope[0] * jacobian[0]
    by_run = np.stack([np.bincount(obs.cluster, row, len(obs.labels)) for row in force], axis=1)
    free = problem.lower < problem.upper
    step = np.zeros(by_run.shape)
    step[:, free] = by_run[:, free] @ np.linalg.pinv(hessian[np.ix_(free, free)])
    step = np.clip(step, -1.0, 1.0)  # beyond, the law is not linear at all
    return step


def profile(problem: Problem, theta: Array, name: str, values: Array) -> Array:
    """Objective (v,) minimised over all other parameters with `name` held at each of `values`.

    `name` is E or an exponent. Each point starts from its neighbour's solution, outwards from the
    estimate, so that the whole curve follows one basin.

    Raises:
        AnalysisError: a coefficient (its scale is not a coordinate of the fit), or E <= 0.
    """
    law = problem.law
    if name != "E" and name not in law.exponents:
        able = ", ".join([*(["E"] if law.has_floor else []), *law.exponents])
        raise AnalysisError(f"{law.name} can be profiled over {able}, not {name!r}")
    i = law.parameters.index(name)
    fixed = np.asarray(values, dtype=float)
    if name == "E":
        if (fixed <= 0).any():
            raise AnalysisError("profile values of E must be positive")
        fixed = np.log(fixed)
    result = np.empty(len(fixed))
    above = [int(k) for k in np.argsort(fixed) if fixed[k] >= theta[i]]
    below = [int(k) for k in np.argsort(-fixed) if fixed[k] < theta[i]]
    for order in (above, below):
        start = theta.copy()
        for k in order:
            start[i] = fixed[k]
            lower, upper = problem.lower.copy(), problem.upper.copy()
            lower[i] = upper[i] = fixed[k]
            solution = problem.solve(start, lower=lower, upper=upper)
            start, result[k] = solution.theta[0].copy(), solution.value[0]
    return result
